"""`wsfast bench` and `wsfast demo`: commands that only benchmarks and demonstrations need.

`bench` measures the time of a broadcast by each method, in one run with three processes. The command line (`session`)
starts a server in a new process for each case (`measure`), and prints the results (`report`). `page` makes an HTML page
of them, with `answers` at its top and charts by `chart`; `comparison` compares them with an earlier run, which `runs`
reads. The server starts its clients in another process that only reads: `clients` is the server's end of it, `peer` is
that process. `methods` has the compared methods, `servers` the servers, `ticks` the messages, `certificate` the
certificate for TLS. `node` controls a server in Node, `node.js`. `memory` is the process of a server whose memory is
measured.

`scenarios` answer questions that the time of a call does not answer. In some, the clients check what they read:
`readers` is their process, `reading` the server's end of it, and `numbered` has their messages.

`demo` shows on a live page what one stalled client does to the others.

Private names of wsfast are in `_library` alone; `native` has the C that only benchmarks need.
"""

__version__ = "0.1.0"
