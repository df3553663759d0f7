"""A demonstration: market ticks from a live server to real clients in another process, watched in a browser.

`show` decides who gets which tick and by which method; `clients` is the other process, and `crowd` the server's side of
it; `ticks` is what is sent and how a client checks it, `commands` what may be asked for, `figures` what is measured.
`server` is the server with its page (`web`, `page/`), and `terminal` shows the same without a browser.
"""
