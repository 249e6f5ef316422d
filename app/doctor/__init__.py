"""What goes wrong between a fresh machine and the first conversation, named before anybody stumbles over it.

Two halves. `host` looks at the machine and at the stand; it runs before anything is installed, by whatever Python the
system has, so it and all that it imports is of the standard library and good for Python 3.10. `gateway` looks from
inside: does the gateway reach vLLM, and do the two agree. The first asks Docker for the second.
"""
