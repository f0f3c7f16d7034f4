"""Masking: every public form of a secret or an address goes, what only looks like one stays, and no text is slow.

The secrets are made here from parts and a seeded random source, so that none stands in the repository.
"""

from __future__ import annotations

import random
import string
import time

import pytest
from few import few

pytest.importorskip("pyarrow")

from test_data_stages import rows

from codegen2.data.filters import mask_text
from codegen2.data.licence_gate import licence_gate
from codegen2.data.licences import PERMISSIVE

_RANDOM = random.Random(15)
ALL, LOW, HEX, DIGITS = (
    string.ascii_letters + string.digits,
    string.ascii_lowercase + string.digits,
    "0123456789abcdef",
    string.digits,
)
UPPER, BASE64, LETTERS = string.ascii_uppercase + string.digits, ALL + "+/", string.ascii_letters


def some(n: int, letters: str = ALL) -> str:
    """Return n random characters, the first two a letter and a digit where there are both."""
    first = "".join([c for c in letters if c.isalpha()][:1] + [c for c in letters if c.isdigit()][-1:])
    return (first + "".join(_RANDOM.choice(letters) for _ in range(n)))[:n]


def uuid() -> str:
    return "-".join(some(n, HEX) for n in (8, 4, 4, 4, 12))


SECRETS = [
    # tokens, assigned to a name that says nothing
    *(
        ("x = '%s'", s)
        for s in [
            "AKIA" + some(16, UPPER),
            "ASIA" + some(16, UPPER),
            "gh" + "p_" + some(36),
            "gh" + "o_" + some(36),
            "gh" + "s_" + some(36),
            "github" + "_pat_" + some(22) + "_" + some(59),
            "gl" + "pat-" + some(20),
            "gl" + "dt-" + some(20),
            "gl" + "rt-" + some(20),
            "glptt-" + some(40, HEX),
            "xo" + "xb-" + some(12, DIGITS) + "-" + some(12, DIGITS) + "-" + some(24),
            "xo"
            + "xp-"
            + some(12, DIGITS)
            + "-"
            + some(12, DIGITS)
            + "-"
            + some(12, DIGITS)
            + "-"
            + some(32, HEX),
            "xa" + "pp-1-A" + some(10, UPPER) + "-" + some(13, DIGITS) + "-" + some(64, HEX),
            "https://hooks.sl"
            + "ack.com/services/T"
            + some(8, UPPER)
            + "/B"
            + some(8, UPPER)
            + "/"
            + some(24),
            "AI" + "za" + some(35),
            "GOC" + "SPX-" + some(28),
            "ya" + "29." + some(60),
            "sk" + "-" + some(48),
            "sk-" + "proj-" + some(60),
            "sk-" + "ant-api03-" + some(93) + "AA",
            "hf" + "_" + some(34, LETTERS),
            "np" + "m_" + some(36),
            "pypi-" + "AgEIcHlwaS5vcmc" + some(70),
            "ruby" + "gems_" + some(48, HEX),
            "do" + "p_v1_" + some(64, HEX),
            "sk" + "_live_" + some(24),
            "rk" + "_live_" + some(24),
            "sk" + "_test_" + some(24),
            "wh" + "sec_" + some(32),
            "SG" + "." + some(22) + "." + some(43),
            "key" + "-" + some(32, HEX),
            some(32, HEX) + "-us12",
            "SK" + some(32, HEX),
            "AC" + some(32, HEX),
            "shp" + "at_" + some(32, HEX),
            "shp" + "ss_" + some(32, HEX),
            "sq0" + "atp-" + some(22),
            "sq0" + "csp-" + some(43),
            "dap" + "i" + some(32, HEX),
            "dp." + "pt." + some(43),
            "dt0" + "c01." + some(24, UPPER) + "." + some(64, UPPER),
            "EZ" + "AK" + some(54),
            "lin" + "_api_" + some(40),
            "PM" + "AK-" + some(24, HEX) + "-" + some(34, HEX),
            "pul" + "-" + some(40, HEX),
            "hv" + "s." + some(95),
            some(14) + ".atlas" + "v1." + some(64),
            "AGE-SECRET" + "-KEY-1" + some(58, UPPER),
            "NR" + "AK-" + some(27, UPPER),
            "gl" + "sa_" + some(32) + "_" + some(8, HEX),
            "snt" + "rys_" + some(80),
            "xkey" + "sib-" + some(64, HEX) + "-" + some(16),
            "AT" + "ATT3" + some(186),
            "ps" + "cale_tkn_" + some(43),
            "tsk" + "ey-auth-" + some(16) + "-" + some(32),
            "pplx" + "-" + some(48),
            "gs" + "k_" + some(52),
            "r" + "8_" + some(37),
            "dck" + "r_pat_" + some(27),
            "LT" + "AI" + some(20),
            "AK" + "Cp" + some(69),
            "ntn" + "_" + some(11, DIGITS) + some(35),
            "hooks.zap" + "ier.com/hooks/catch/" + some(7, DIGITS) + "/" + some(7, LOW),
            "M" + some(23) + "." + some(6) + "." + some(27),
            some(10, DIGITS) + ":AA" + some(33),
            "https://disc" + "ord.com/api/webhooks/" + some(18, DIGITS) + "/" + some(68),
            "ey" + "J" + some(20) + "." + "ey" + "J" + some(60) + "." + some(43),
            "figd" + "_" + some(40),
            "secret" + "_" + some(43),
            "sq" + "p_" + some(40, HEX),
            "sdk" + "-" + uuid(),
            "rzp" + "_live_" + some(14),
            "EAA" + "C" + some(120),
        ]
    ),
    # known by their name
    ("AWS_SECRET_ACCESS_KEY=%s\n", some(40, BASE64)),
    ('aws_secret_access_key = "%s"', some(40, BASE64)),
    ('HEROKU_API_KEY = "%s"', uuid()),
    ('datadog_api_key: "%s"', some(32, HEX)),
    ('"clientSecret": "%s"', some(40)),
    ("Authorization: Bearer %s\n", some(40)),
    ("Authorization: Basic %s\n", some(24) + "=="),
    ("DefaultEndpointsProtocol=https;AccountName=a;%s;", "AccountKey=" + some(86, BASE64) + "=="),
    ("api_key := `%s`", some(32)),
    ("secret => '%s'", some(32, LOW)),
    ("export SECRET_TOKEN=%s\n", some(32, LOW)),
    ("twitter_secret = '%s'", some(45)),
    ("password = '%s'", "Tr0ub" + "4dor&3x"),
    ("DB_PASSWORD=%s\n", "s3cr" + "3tP4ss"),
    ("Server=db;User Id=sa;Password=%s;", "Wx9k" + "Lm2Qz"),
    ("postgres://admin:%s@db.uni-x.edu/app", "s3cr" + "3tP4ss"),
    ("https://ann:%s@git.uni-x.edu/r.git", some(20)),
    ("mongodb+srv://u1:%s@c0.uni-x.net/", "hunt" + "er2"),
    ("redis://:%s@10.0.0.3:6379/0", "p4ss" + "W0rdX"),
    ("amqp://svc:%s@mq.example.com", "xyzzy" + "plugh"),
    ("curl -u ann:%s https://x.org/", "f0oB4rz"),
    (
        "%s",
        "-----BEGIN "
        + "PRIVATE KEY-----\n"
        + some(64)
        + "\n"
        + some(64)
        + "\n-----END "
        + "PRIVATE KEY-----",
    ),
    (
        "%s",
        "-----BEGIN OPENSSH "
        + "PRIVATE KEY-----\\n"
        + some(64)
        + "\\n-----END OPENSSH "
        + "PRIVATE KEY-----",
    ),
    (
        "%s",
        "-----BEGIN PGP "
        + "PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\n\n"
        + some(64)
        + "\n-----END PGP "
        + "PRIVATE KEY BLOCK-----",
    ),
    # people and machines
    ("<a href='mailto:%s'>", "ann.lee@uni-x.edu"),
    ("by %s.", "Ann.Lee@UNI-X.EDU"),
    ("email=%s&x=1", "ann@uni-x.edu"),
    ("EMAIL=%s\n", "ann@uni-x.edu"),
    ("Author:%s", "ann@lee.org"),
    ("'%s'", "a.b+c@lee.co.uk"),
    ("ask %s: she", "ann@lee.org"),
    ("%s", "ann [at] lee.org"),
    ("?to=%s", "ann%40lee.org"),
    ("by %s", "ann@m\u00fcnchen.de"),
    ("(%s)", "ANN@LEE.COM"),
    ("HOST=%s\n", "52.95.110.1"),
    ("host = '%s'", "52.95.110.1"),
    ("http://%s:8080/", "52.95.110.1"),
    ("if ip == '%s':", "52.95.110.1"),
    ("at %s.", "2a02:26f0:1234:5678::9"),
    ("[%s]:80", "2a02:26f0:1234::9"),
    ("server=%s;", "52.95.110.77"),
]
HARMLESS = [
    f"x = '{some(32, HEX)}'",
    f"md5 = '{some(32, HEX)}'",
    f"sha1: {some(40, HEX)}",
    f"sha256:{some(64, HEX)}",
    f"integrity: 'sha512-{some(86, BASE64)}=='",
    f"commit {some(40, HEX)}",
    f"id = '{uuid()}'",
    f"{{{uuid().upper()}}}",
    f"urn:uuid:{uuid()}",
    f"GUID({uuid()})",
    "@app.route('/x')",
    "@pytest.mark.parametrize",
    "@Override",
    "@media (max-width: 3px)",
    "me@example.com",
    "a@example.org",
    "noreply@x.com",
    "no-reply@github.com",
    "git@github.com:a/b.git",
    "git+ssh://git@github.com/a/b",
    "user@localhost",
    "foo@bar.com",
    "pkg@1.2.3",
    "react@^18.2.0",
    "icon@2x.png",
    "npm i @types/node@18.0.0",
    "numpy==1.26.4",
    "v = '1.2.3.4'",
    "version 52.95.110.1",
    'assembly: AssemblyVersion("13.0.1.25")',
    "(>= 12.1.2.3)",
    "x==12.1.2.3",
    "127.0.0.1",
    "10.1.2.3",
    "192.168.0.1:80",
    "255.255.255.0",
    "0.0.0.0/0",
    "8.8.8.8",
    "2001:db8::1",
    "::1",
    "12:34:56:78",
    "fe80::1ff:fe23:4567:890a",
    "http://user:password@host/",
    "https://user:pass@x.org",
    "postgres://postgres:postgres@localhost/db",
    "https://{user}:{pw}@{host}/",
    "http://$USER:$PASS@host",
    "https://x.org:8080/a@b",
    "password = 'password'",
    "password = 'changeme'",
    "password = getpass.getpass()",
    "password=password1234,",
    "token = 'this_is_not_a_secret_at_all'",
    "api_key = 'YOUR_API_KEY_HERE'",
    "api_key = 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'",
    "sk-learn-some-really-long-css-class-name-of-many-words",
    "gh" + "p_" + "x" * 36,
    "from secrets import token_urlsafe",
    f"token_sha256 = '{some(64, HEX)}'",
    f"public_key_fingerprint = '{some(40, HEX)}'",
    f"base64 = 'data:image/png;base64,{some(80, BASE64)}'",
    "class AuthenticationTokenProvider2Factory:",
    "tokens = tokenizer2.batch_encode_plus3(x)",
    "-----BEGIN PUBLIC KEY-----\nMII\n-----END PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
    "auth = AuthenticationMiddleware2Handler.create_default()",
    "secret = os.environ['MY_SECRET_2_KEY_NAME_X']",
    "a @ b.T",
    "W@x.data",
    "std::pair<int,int>",
    "AKIA",
    "eyJ",
    "sk-",
    "x.mailto()",
    "ACTION = 'AC_IS_NO_TOKEN_AT_ALL'",
    "ACcount_0123456789",
]


def test_lists_are_long() -> None:
    assert len(SECRETS) >= 100 and len(HARMLESS) >= 60


@pytest.mark.parametrize("place", range(len(SECRETS)))
def test_secrets_and_addresses_go(place: int) -> None:
    text, secret = SECRETS[place]
    masked, found = mask_text(f"before\n{text % secret}\nafter")
    assert sum(found) == 1 and masked.startswith("before\n") and masked.endswith("\nafter")
    left = masked.replace("<KEY>", "").replace("<EMAIL>", "")
    assert not any(
        secret[i : i + 8] in left for i in range(len(secret) - 7) if any(map(str.isdigit, secret[i : i + 8]))
    )


@pytest.mark.parametrize("place", range(len(HARMLESS)))
def test_what_is_harmless_stays(place: int) -> None:
    assert mask_text(HARMLESS[place]) == (HARMLESS[place], [0, 0, 0])


@pytest.mark.parametrize(
    "unit",
    few([
        "-----BEGIN RSA PRIVATE KEY-----\n", "-----BEGIN PRIVATE KEY-----x-----END ", "Private-Lines: 1\n", "a@",
        "a.", "-",        "a@" + "a-" * 30, "a@b.c.d.", "2000:0:", "://" + "a" * 60 + ":", "curl -u ", "password=",
        "token : ", "-eyJ",
        "ey" + "a" * 50 + ".ey" + "b" * 50 + ".", "-ghp_", "-glpat-", "aaa1Q~", "a (at) ", "A1", "7", " ", "\u4e2d",
        "Licensed under the ", "Licensed under A-", "commons" + " " * 150, "SPDX-License-Identifier: MIT AND ", "MPL ",
    ], 4),
)  # fmt: skip
def test_no_shape_is_slow(unit: str) -> None:
    text = "x = '" + unit * (250_000 // len(unit))
    start = time.process_time()  # of a quarter of the largest file; a busy machine does not lengthen it much
    mask_text(text)
    licence_gate(rows(text), PERMISSIVE)
    assert time.process_time() - start < 2
