# The signatures of the extension are those of its twin, which has the docstrings.
from wsfast._core_py import Buffer as Buffer
from wsfast._core_py import Cut as Cut
from wsfast._core_py import Encoding as Encoding
from wsfast._core_py import Encodings as Encodings
from wsfast._core_py import Lost as Lost
from wsfast._core_py import Members as Members
from wsfast._core_py import Roster as Roster
from wsfast._core_py import Waiting as Waiting
from wsfast._core_py import apply_mask as apply_mask
from wsfast._core_py import encode_frame as encode_frame
from wsfast._core_py import fan_out as fan_out

sends_directly: bool
