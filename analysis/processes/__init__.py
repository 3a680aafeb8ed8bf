"""Child processes in which untrusted bytes are decoded and models run.

`pool`, `child` and `messages` run in the server, `decoder_main` and `tagger_main` in the children.
A child is a fresh Python, not a fork of a server with many threads. It shares one socket with the
server, over which length-prefixed JSON and bytes go: nothing that it sends is ever unpickled.
"""
