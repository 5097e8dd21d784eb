"""What the values of a config may be: all of them are checked before anything starts.

Keys that are not named here may hold anything: parts come and go, and each checks what it is made of.
"""

from vcd.schema.config import check

__all__ = ["check"]
