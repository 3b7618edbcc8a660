"""One method per file; ``system.system_class`` names the class."""

from npbgpp.methods.nerf.system import NeRF, NerfSettings
from npbgpp.methods.npbg import NPBG, NPBGSettings
from npbgpp.methods.npbgpp.system import NPBGPlusPlus, NPBGPlusPlusSettings
from npbgpp.methods.npcr.losses import NPCRSettings
from npbgpp.methods.npcr.system import NPCR
from npbgpp.methods.nsff.objective import NsffSettings
from npbgpp.methods.nsff.system import NSFF

SYSTEMS = {
    "NeRF": (NeRF, NerfSettings),
    "NPBG": (NPBG, NPBGSettings),
    "NPBGPlusPlus": (NPBGPlusPlus, NPBGPlusPlusSettings),
    "NPCR": (NPCR, NPCRSettings),
    "NSFF": (NSFF, NsffSettings),
}
