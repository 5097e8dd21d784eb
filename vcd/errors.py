"""What goes wrong on the user's side."""


class UserError(Exception):
    """One clear sentence that names the key or file at fault and the mend.

    Entry points print it alone, without a traceback, and exit with code 1.
    """


class NotFinite(UserError):
    """A model whose images or latents are NaN or infinite: it diverges, or is asked for more than numbers can hold."""
