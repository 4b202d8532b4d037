"""URLs: what is a credential is withheld, and two places never become one."""

import pytest

from mimkit.core.errors import UserError
from mimkit.core.urls import public, whole, withhold_all, withhold_each


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("MIMKIT_URLS", raising=False)


def test_credentials_are_withheld_and_come_back():
    signed = "https://host/a.tar?Signature=hush"
    assert withhold_each([signed, "folder"]) == ["https://host/a.tar", "folder"]
    assert whole("https://host/a.tar") == signed and public(signed) == "https://host/a.tar"


def test_a_renewed_signature_is_the_one_that_counts():
    withhold_each(["https://host/a.tar?Signature=old"])
    withhold_each(["https://host/a.tar?Signature=new"])
    assert whole("https://host/a.tar").endswith("new")


@pytest.mark.parametrize("withhold", [withhold_each, withhold_all])
def test_urls_that_differ_in_what_is_withheld_are_refused(withhold):
    with pytest.raises(UserError, match=r"two URLs differ behind the '\?' alone.*https://host/get"):
        withhold(["https://host/get?file=a.tar", "https://host/get?file=b.tar"])
    assert withhold(["https://host/get?file=a.tar"] * 2) == ["https://host/get"] * 2
