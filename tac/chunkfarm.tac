"""One server of a farm as a twistd application file, for those who compose their own.

    twistd --nodaemon --pidfile= --python tac/chunkfarm.tac

It goes through the same options as `twistd chunkfarm`, so mistakes are told in the same words.
`$CHUNKFARM_CONFIG` names the config file (default: config.ini in the working directory).
"""

import os

from twisted.application.service import Application

from chunkfarm.tap import Options, makeService

options = Options()
options.parseOptions(["--config", os.environ.get("CHUNKFARM_CONFIG", "config.ini")])

application = Application("chunkfarm")
makeService(options).setServiceParent(application)
