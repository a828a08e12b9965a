"""The page of a campaign: every event is on it, the books are those of the contract."""

import re

import pytest

from suites.argus.campaigns import Campaign
from systems.argus.page import page
from systems.evm import Event, RevmChain

pytest.importorskip("pyrevm", reason="pyrevm is not installed: pip install 'maat[test]'")


@pytest.fixture
def campaign():
    return Campaign(RevmChain())


def played(campaign):
    """One licence that leaked and was reported by two informers, one that was framed and cleared."""
    leaked, framed = campaign.new_deal(b"leaked"), campaign.new_deal(b"framed")
    for deal in (leaked, framed):
        for move in (campaign.request, campaign.deliver, campaign.accept):
            move(deal)
    first, second = campaign.informers[:2]
    wrong = next(v for v in range(campaign.settings.versions) if v % 4 + 1 != framed.choice.opening.chosen[0])
    for informer in (first, second):
        campaign.commit(leaked, informer)
    campaign.commit(framed, campaign.owner, version=wrong)
    campaign.next_period()
    for informer in (first, second):
        campaign.reveal(leaked, informer)
    campaign.reveal(framed, campaign.owner, version=wrong)
    campaign.repudiate(framed, 0)
    campaign.finish()
    campaign.settle(leaked)
    campaign.claim(leaked, first, 1)
    return campaign


def test_every_event_is_on_the_page(campaign):
    events = played(campaign).court.events()
    text = page(events, campaign.court.times())
    assert len(re.findall("<circle", text)) == len([event for event in events if event.name != "Opened"])
    assert "No event breaks a rule." in text
    assert "Repudiated" in text
    assert "period 2" in text
    assert "time of the block" in text
    assert "block number" in page(events)
    held = re.search(r"the contract holds</td><td>([\d.]+) ether", text)
    assert float(held[1]) == pytest.approx(campaign.court.balance / 10**18, rel=1e-5)


def test_a_page_needs_no_network_and_no_script(campaign):
    text = page(played(campaign).court.events())
    assert "<script" not in text
    assert "http" not in text


def test_names_of_events_cannot_break_the_page(campaign):
    events = list(campaign.court.events())
    events[0] = Event("Opened", {**events[0].args, "owner": "<b>me</b>"}, events[0].address, events[0].block)
    assert "<b>me</b>" not in page(events)


def test_what_is_no_campaign_is_refused():
    with pytest.raises(ValueError, match="no events"):
        page([])
