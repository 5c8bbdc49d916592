import stat

import jwt

from local import issuer


def test_token_verifies_with_the_published_key(tmp_path):
    key = issuer.load_key(tmp_path / "issuer.pem")
    token = issuer.sign(key, issuer.claims("alice", "ledger:deposit", ttl=60))
    published = jwt.PyJWKSet.from_dict({"keys": [issuer.jwk(key)]})

    header = jwt.get_unverified_header(token)
    claims = jwt.decode(
        token, published[header["kid"]], algorithms=["ES256"], audience=issuer.AUDIENCE, issuer=issuer.ISSUER,
        options={"require": ["sub", "iat", "nbf", "exp", "jti"]},
    )  # fmt: skip

    assert claims["sub"] == "alice"
    assert claims["scope"] == "ledger:deposit"
    assert claims["exp"] - claims["iat"] == 60


def test_private_key_is_stable_and_readable_by_owner_only(tmp_path):
    path = tmp_path / "issuer.pem"

    assert issuer.jwk(issuer.load_key(path)) == issuer.jwk(issuer.load_key(path))
    assert "d" not in issuer.jwk(issuer.load_key(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
