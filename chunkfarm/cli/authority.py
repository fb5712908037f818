"""`chunkfarm ca`: the farm's CA for other tools, and changing it."""

from __future__ import annotations

import base64
import sys

import click
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from twisted.internet.task import deferLater

from chunkfarm.cli import screen
from chunkfarm.cli.farm import Farm
from chunkfarm.cli.surroundings import Surroundings
from chunkfarm.cli.threads import RunInThread
from chunkfarm.links.lines import Reply

POLL_SECONDS = 1.0
BEFORE = """The farm gets another CA, another key that seals its secrets, and another join key. Nothing is restarted.
Who reaches it from elsewhere needs a newer config.ini or ca.pem within a day. Keys of users stay as they are: whoever
could open the farm's secrets knows those that were made before (chunkfarm key list, key add, key remove)."""


def has_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


@click.command()
@click.option("--rotate", is_flag=True, help="Have the farm change its CA while it runs, and wait until it has.")
@click.option("--yes", is_flag=True, help="Do not ask before.")
@screen.as_json
@click.pass_obj
def ca(surroundings: Surroundings, rotate: bool, yes: bool, as_json: bool) -> None:
    """Print the certificate of the farm's CA, for curl, browsers and other tools.

    While the farm changes its CA it prints both, and either is good.

    \b
    chunkfarm ca > ca.pem
    """
    if rotate and not yes:
        if not has_terminal():
            raise click.UsageError("there is no terminal to ask on: give --yes")
        screen.say(BEFORE, err=True)
        click.confirm("Change it?", abort=True, err=True)

    async def work(farm: Farm, run_in_thread: RunInThread) -> Reply:
        reply: Reply = await farm.run(lambda link: link.request("CA"))
        if not rotate:
            return reply
        before = _signing(reply)
        await farm.run(lambda link: link.request("ROTATE"))
        reply = await _wait(farm, before)
        screen.say(f"The farm's CA was {before}, and is {_signing(reply)}.", err=True)
        return reply

    reply = surroundings.run(work, certificate_will_do=True, reads=not rotate)
    if as_json:
        rows = [
            {name: value for name, value in row.items() if name != "der"} | {"pem": _pem(row)} for row in reply.parsed()
        ]
        screen.show_json({"step": reply.fields["step"], "certificates": rows})
        return
    for row in reply.parsed():
        click.echo(_pem(row), nl=False)


async def _wait(farm: Farm, before: str) -> Reply:
    said = ""
    while True:
        reply: Reply = await farm.run(lambda link: link.request("CA"))
        step, now = reply.fields["step"], _signing(reply)
        if step == "none" and now != before:
            return reply
        waits = screen.clean(reply.fields.get("waitsfor", "")).replace(",", ", ")
        tells = (
            f"{step}{f', waits for {waits}' if waits else ''} {screen.clean(reply.fields.get('because', ''))}".strip()
        )
        if tells != said and step != "none":
            # Who waits for a server that is not ready yet has not hung up.
            screen.say(tells, err=True)
            said = tells
        farm.moved()
        await deferLater(farm.clock, POLL_SECONDS)


def _signing(reply: Reply) -> str:
    return next(row["fingerprint"] for row in reply.parsed() if row["role"] == "signs")


def _pem(row: dict[str, str]) -> str:
    certificate = x509.load_der_x509_certificate(base64.b64decode(row["der"]))
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
