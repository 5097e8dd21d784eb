"""What the values of a config may be: all of them are checked before anything starts.

Keys that are not named here may hold anything: parts come and go, and each checks what it is made of.
"""

from vcd.schema.config import check
from vcd.schema.signatures import check_parts

__all__ = ["check", "check_parts"]
