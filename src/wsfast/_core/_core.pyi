# The signatures of the extension are those of its twin, which has the docstrings.
from wsfast._core._pure import Buffer as Buffer
from wsfast._core._pure import Cut as Cut
from wsfast._core._pure import Encoding as Encoding
from wsfast._core._pure import Encodings as Encodings
from wsfast._core._pure import Lost as Lost
from wsfast._core._pure import Members as Members
from wsfast._core._pure import Roster as Roster
from wsfast._core._pure import Waiting as Waiting
from wsfast._core._pure import apply_mask as apply_mask
from wsfast._core._pure import encode_frame as encode_frame
from wsfast._core._pure import fan_out as fan_out

sends_directly: bool
