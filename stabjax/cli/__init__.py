"""The command ``stabjax``: see what the library does, and measure a network, before writing a line of code.

stabjax demo                                      the scale-detection task, no download
stabjax measure module:function --images photos   any network on your images, as a folder with one HTML page
stabjax compare report_a report_b                 two measurements side by side
stabjax info                                      versions and devices
"""

from stabjax._compilation_cache import keep_compiled_programs
from stabjax._provenance import command, versions
from stabjax.cli._compare import Compare
from stabjax.cli._demo import Demo, table
from stabjax.cli._main import Info, main
from stabjax.cli._measure import Measure

__all__ = ["Compare", "Demo", "Info", "Measure", "command", "keep_compiled_programs", "main", "table", "versions"]
