"""What a caller of picback uses: the commands for callers, and a receiver to try things with.

A caller knows the contract and nothing behind it: this package speaks gRPC to a server like
anybody else's program would. Of picback's own it imports the dispatcher's front door only, to
verify signatures.
"""
