"""`chunkfarm bench`: what this machine and its network could do at best, and how near the farm comes to it.

bounds      what each figure means, and which ceilings bound what a farm does (pure)
ceilings    disk and hashing, measured here; everything in there blocks
sink        a process that takes in bytes and says so, through the package's own transport
loopback    TCP and TLS, measured against such a process
through     the running farm: each server, then large and small files
command     the command line
"""
