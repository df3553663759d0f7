# The signatures of the extension are those of its twin, which has the docstrings.
from wsfast._core._pure import Batch as Batch
from wsfast._core._pure import Buffer as Buffer
from wsfast._core._pure import Cut as Cut
from wsfast._core._pure import EncoderBase as EncoderBase
from wsfast._core._pure import Encoding as Encoding
from wsfast._core._pure import Encodings as Encodings
from wsfast._core._pure import Encrypted as Encrypted
from wsfast._core._pure import Members as Members
from wsfast._core._pure import Peer as Peer
from wsfast._core._pure import TickTable as TickTable
from wsfast._core._pure import Verdict as Verdict
from wsfast._core._pure import WindowBase as WindowBase
from wsfast._core._pure import apply_mask as apply_mask
from wsfast._core._pure import collector_paused as collector_paused
from wsfast._core._pure import detaches as detaches
from wsfast._core._pure import encode_frame as encode_frame
from wsfast._core._pure import set_threads as set_threads
from wsfast._core._pure import threads as threads

sends_directly: bool

def set_files(size: int | None, receivers: int = ...) -> tuple[int | None, int]:
    """Say which unmasked frames leave by `sendfile()`; return what was said before. The twin leaves all to transports.

    Args:
        size: Octets of a frame, at least; None for no frame.
        receivers: How many get it in one batch, at least.
    """
