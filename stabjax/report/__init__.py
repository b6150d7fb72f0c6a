"""A measurement as a folder: the numbers, the figure, and one HTML page that needs nothing else.

`write` makes the folder, `read` returns what was measured, and `page` is the page alone. Styles, script, figure and
images are inside of the page: it can be sent by mail, kept beside a paper, and opened without a network. Every name and
path in it is escaped.
"""

from stabjax.report._folder import read, write
from stabjax.report._measured import Measured
from stabjax.report._page import page

__all__ = ["Measured", "page", "read", "write"]
