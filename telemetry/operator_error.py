"""The one error that is written for a person: what is wrong, and what to do about it."""


class OperatorError(Exception):
    """Something the operator can mend. The command line prints it in one or two lines and exits 1; never a traceback.

    code: a stable word for scripts and tests, e.g. "port_taken".
    what: one sentence that says what is wrong, with the value at fault.
    hint: one sentence that says what to do.
    """

    def __init__(self, code: str, what: str, hint: str) -> None:
        super().__init__(f"{what} {hint}")
        self.code = code
        self.what = what
        self.hint = hint
