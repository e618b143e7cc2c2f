"""What comes over the network is merged into what it says."""

from edge_agent.core import inputs
from edge_agent.shell.limits import ACKED_BOOTS_MAX
from edge_agent.shell.mailbox import Item, Mailbox, Mark
from edge_contract.telemetry import Ack


def drained(mail: Mailbox) -> list[object]:
    found: list[object] = []
    while (item := mail.get(0)) is not None:
        found.append(item)
    return found


def test_messages_of_each_kind_become_one() -> None:
    mail = Mailbox()
    for version in (3, 9, 4):
        mail.put_nudge(version)
    mail.put_ack(Ack({"a": 5, "b": 1}))
    mail.put_ack(Ack({"a": 4, "c": 2}))
    mail.put_link(True)
    mail.put_link(False)
    assert drained(mail) == [inputs.NudgeReceived(9), Ack({"a": 5, "b": 1, "c": 2}), inputs.LinkChanged(False)]


def test_what_comes_after_a_message_was_taken_is_a_message_of_its_own() -> None:
    mail = Mailbox()
    mail.put_link(False)
    assert drained(mail) == [inputs.LinkChanged(False)]
    mail.put_link(False)
    mail.put_nudge(0)
    mail.put_nudge(0)
    mail.put_ack(Ack({"a": 0}))
    assert drained(mail) == [inputs.LinkChanged(False), inputs.NudgeReceived(0), Ack({"a": 0})]
    assert drained(mail) == []


def test_everything_else_keeps_its_order() -> None:
    mail = Mailbox()
    items: list[Item] = [inputs.Started(), Mark.SAMPLES, inputs.BlobsVerified(1), Mark.STOP]
    for item in items:
        mail.put(item)
    assert drained(mail) == list(items)


def test_acknowledgements_of_boots_without_end_are_bounded_and_empty_ones_are_nothing() -> None:
    mail = Mailbox()
    mail.put_ack(Ack({}))
    assert drained(mail) == []
    for number in range(2 * ACKED_BOOTS_MAX):
        mail.put_ack(Ack({f"{number:016x}": 1}))
    (merged,) = drained(mail)
    assert isinstance(merged, Ack)
    assert len(merged.upto) == ACKED_BOOTS_MAX
