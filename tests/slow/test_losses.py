"""One server lost for good after the other, in small: `python -m tests.slow.losses` does it with thousands of files."""

from __future__ import annotations

import pytest

from tests.slow.farm_case import FarmTestCase
from tests.slow.large_files import MIB
from tests.slow.losses import QUICK, Losses

pytestmark = pytest.mark.slow


class LossesTests(FarmTestCase):
    def test_three_of_five(self) -> None:
        """Every file is there, byte for byte, at each stage, and every chunk has as many copies as there can be."""
        Losses(self.make_farm(farm=QUICK), 100, 8 * MIB + 17).run()
