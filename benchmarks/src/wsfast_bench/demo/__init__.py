"""A demo: one message to many clients, sent in three ways, and one client that stops reading.

Each way is a lane, a server in a process of its own (`lane`). All clients are in one more process (`clients`). The
servers send what `message` makes. The command starts these processes (`child`), merges their reports into samples
(`show`) and puts each sample into words (`story`). `server` serves the page (`web`, `page/`) and runs the comparison;
`terminal` prints it.
"""
