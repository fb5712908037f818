"""The code with which a server joins."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from chunkfarm.config import Listed
from chunkfarm.trust.invitation import CODE_LENGTH_MAX, MARK, SECRET_LENGTH, Invitation
from chunkfarm.trust.private import TrustError
from tests.builders import server_id


def make_invitation() -> Invitation:
    listed = Listed(name="alpha", host="10.0.0.1", client=1, peer=2, files=3, id=server_id(1), joined=0, state="up")
    return Invitation("0123456789abcdef", bytes(range(SECRET_LENGTH)), "fa" * 16, "sha256:" + "3a" * 32, (listed,))


class InvitationTests(SynchronousTestCase):
    """Text out, text in, and nothing else."""

    def test_round(self) -> None:
        """What is read is what was written, also with white space around it, and it is one word."""
        code = make_invitation().to_code()
        assert Invitation.from_code(f" {code}\n") == make_invitation()
        assert code.startswith(MARK) and code.replace("-", "").replace("_", "").isalnum()
        assert len(code) < CODE_LENGTH_MAX

    @given(text=st.text(), place=st.integers(0, 400), piece=st.text(max_size=3))
    @settings(max_examples=60, deadline=None)
    def test_anything_else(self, text: str, place: int, piece: str) -> None:
        """A damaged or an invented code is refused in one sentence that repeats nothing of it."""
        code = make_invitation().to_code()
        for wrong in (text, MARK + text, code[:place] + piece + code[place + 1 :]):
            try:
                assert Invitation.from_code(wrong) is not None
            except TrustError as error:
                assert str(error) == f"this is no code of `chunkfarm invite`: one begins with {MARK}"

    def test_no_secret_is_shown(self) -> None:
        """Whoever prints it does not print the secret."""
        assert repr(make_invitation().secret) not in repr(make_invitation())
