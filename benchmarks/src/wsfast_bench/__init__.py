"""`wsfast bench` and `wsfast demo`: the commands of wsfast that users of the library do without.

`bench` measures what a broadcast costs, by each method, in one run. Three processes: that of the command line
(`session`) starts, for each case, a server in a fresh process (`measure`) and prints what it is told (`report`; `page`
makes a page of it, `comparison` compares it with an earlier run). The server has its clients in a process of its own
(`clients` is the server's end of it, `peer` is that process) that only reads. The methods that are compared are in
`methods`, the servers in `servers`, what they send in `ticks`; `certificate` is what TLS needs; `node` is our end of a
server in Node, which is `node.js`. `memory` is the process of a server whose memory is measured instead.

What a channel is for cannot be told by the time of a call; `scenarios` are for that. The clients of some look at what
they read: `readers` is their process, `reading` the server's end of it, `numbered` what they are sent.

`demo` shows the same to the eye: a live server with a page.

Private names of wsfast are in `_library` alone; `native` has the C that only benchmarks need.
"""

__version__ = "0.1.0"
