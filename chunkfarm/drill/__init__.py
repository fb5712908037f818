"""`chunkfarm drill`: a throw-away farm on this machine, a fault, and what came of it.

    story       what happened, when, and whether it was right (pure)
    servers     one server as a process of this machine
    farm        several of them in one folder, and what they say
    people      who puts and gets files meanwhile, and remembers what was acknowledged
    relay       the way between servers, which a drill can cut
    disks       how a disk becomes full
    kill_first, partition, fill_disk, flip_bit      the drills, each a script to read from top to bottom
    command     the command line

Nothing here knows the user's own farm, key or config.ini.
"""
