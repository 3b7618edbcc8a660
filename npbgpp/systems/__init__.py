"""One method per file; ``system.system_class`` names the class."""

from npbgpp.systems.npbg import NPBG

SYSTEMS = {"NPBG": NPBG}
