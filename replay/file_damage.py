"""What is wrong with a file of records, and how far it is right."""

from pathlib import Path

from kinguin_streams.telemetry.operator_error import OperatorError


class DamagedFile(OperatorError):
    """A file that is not what was written. Everything before the damage has been yielded, nothing after it.

    block_number: 1 for the first block or line, 0 for what stands before the first block.
    position: where that block begins, in bytes. good_records: how many records stand before it.
    """

    def __init__(self, path: Path, block_number: int, position: int, good_records: int, why: str) -> None:
        super().__init__(
            "file_damaged",
            f"{path} is damaged in block {block_number}, at byte {position:,}: {why}. "
            f"The {good_records:,} records before it are good.",
            "Restore the file from a copy, or leave it out and read its topic and offsets anew.",
        )
        self.path = path
        self.block_number = block_number
        self.position = position
        self.good_records = good_records
        self.why = why


def not_ours(path: Path, why: str) -> OperatorError:
    """Return the error for a file that is whole, perhaps, and no file of records."""
    return OperatorError(
        "file_not_ours",
        f"{path} is no file of records as `replay file` writes them: {why}.",
        "Name files or folders that `replay file` has written.",
    )
