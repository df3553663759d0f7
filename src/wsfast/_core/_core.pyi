# The extension has the same signatures as the pure-Python core, which has the docstrings.
from wsfast._core._pure import Batch as Batch
from wsfast._core._pure import Buffer as Buffer
from wsfast._core._pure import Cut as Cut
from wsfast._core._pure import EncoderBase as EncoderBase
from wsfast._core._pure import Encoding as Encoding
from wsfast._core._pure import Encodings as Encodings
from wsfast._core._pure import Encrypted as Encrypted
from wsfast._core._pure import Filter as Filter
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
    """Set which unmasked frames are sent with `sendfile()`; return the previous setting. Only the extension has this.

    Args:
        size: Smallest frame, in octets; None for no frame.
        receivers: Smallest number of connections in one batch that get the frame.
    """
