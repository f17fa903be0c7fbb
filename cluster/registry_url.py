"""What a registry's URL says, and how much of it may be seen. Decides only.

One URL, or several in the order to try them, separated by commas: the client's own syntax.
"""

import re
from urllib.parse import SplitResult, unquote, urlsplit


def fault_of(url: str) -> str | None:
    """Return why this is no URL that can be used, without repeating any of it; None if it is one.

    A password with `/`, `?`, `#`, a comma or a blank in it ends a URL's host early. The rest would be taken for a port or a
    path, and be shown.
    """
    users: set[str | None] = set()
    for one in url.split(","):
        if not one.strip().startswith(("http://", "https://", "mock://")):
            return "must begin with http:// or https://, each one of a list; percent-encode a comma in a password (%2C)"
        if not _has_a_host_and_all_of_its_user(one):
            return (
                "no http://host:port/path; in a user and a password percent-encode what is not a letter or a digit "
                "(/ is %2F, a blank %20)"
            )
        users.add(user_info_of(one))
    users.discard(None)
    return "the URLs of a list have one user between them" if len(users) > 1 else None


def user_info_of(url: str) -> str | None:
    """Return "user:password", decoded, of a URL that has no fault; None if it has no user."""
    return next((_user_of(parts) for parts in map(_parts, url.split(",")) if "@" in parts.netloc), None)


def without_user(url: str) -> str:
    """Return a URL that has no fault without user and password, and with its query."""
    return re.sub(r"://[^/?#,]*@", "://", url)


def without_credentials(text: str) -> str:
    """Return any text with user, password and query of its URLs taken out: a client's error may repeat the URL."""
    # To the last @ before a blank or the next URL: a password that was not encoded may hold both @ and /.
    text = re.sub(r"://(?:(?!://)\S)*@", "://", text)
    return re.sub(r"(://[^?\s]*)\?[^\s'\"]*", r"\1", text)


def _has_a_host_and_all_of_its_user(url: str) -> bool:
    try:
        parts = _parts(url)
        host, _port = parts.hostname, parts.port
    except ValueError:  # half an IPv6 address, a port that is no number
        return False
    return bool(host) and "@" not in parts.path + parts.query + parts.fragment and not re.search(r"\s", url.strip())


def _parts(url: str) -> SplitResult:
    return urlsplit(url.strip())


def _user_of(parts: SplitResult) -> str:
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return f"{unquote(user)}:{unquote(password)}"
