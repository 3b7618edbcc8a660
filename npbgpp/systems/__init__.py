"""One method per file; ``system.system_class`` names the class."""

from npbgpp.systems.nerf import NeRF
from npbgpp.systems.nerf_settings import NerfSettings
from npbgpp.systems.npbg import NPBG
from npbgpp.systems.npbg_settings import NPBGSettings
from npbgpp.systems.npbgpp import NPBGPlusPlus
from npbgpp.systems.npbgpp_settings import NPBGPlusPlusSettings
from npbgpp.systems.npcr import NPCR
from npbgpp.systems.npcr_settings import NPCRSettings
from npbgpp.systems.nsff import NSFF
from npbgpp.systems.nsff_settings import NsffSettings

SYSTEMS = {
    "NeRF": (NeRF, NerfSettings),
    "NPBG": (NPBG, NPBGSettings),
    "NPBGPlusPlus": (NPBGPlusPlus, NPBGPlusPlusSettings),
    "NPCR": (NPCR, NPCRSettings),
    "NSFF": (NSFF, NsffSettings),
}
