"""What makes `twistd chunkfarm` a command. This folder must never get an `__init__.py`."""

from twisted.application.service import ServiceMaker

chunkfarm = ServiceMaker("chunkfarm", "chunkfarm.tap", "A server of one replicated file store.", "chunkfarm")
