"""What is around the dialects: health, keys, limits, pages kept out, metrics, logs."""

import json
import re
import threading

import pytest
from serve_tools import client, says, wait_until

from codegen2.serve import http as serve_http
from codegen2.serve.logs import JsonLine

URL = "/v1/completions"
BODY = {"prompt": "a:", "max_tokens": 2}


def model():
    return says("x" * 40)


def test_health_while_loading_ready_unloaded_and_failed():
    go = threading.Event()

    def load():
        go.wait()
        return model()

    with client(load, ready=False, keep_alive_s=0.0) as http:
        reply = http.get("/health")
        assert reply.status_code == 503
        assert reply.json()["error"]["message"] == "Loading model"
        go.set()
        wait_until(lambda: http.get("/health").status_code == 200)
        assert http.get("/health").json()["status"] == "ok"
        wait_until(lambda: http.get("/health").json().get("model") == "unloaded")
        assert http.get("/health").status_code == 200
        assert http.post(URL, json=BODY).status_code == 200

    def fail():
        raise ValueError("no such checkpoint")

    with client(fail) as http:
        reply = http.get("/health")
        assert reply.status_code == 500 and "no such checkpoint" in reply.json()["error"]["message"]
        assert http.post(URL, json=BODY).status_code == 500


def test_keys_are_asked_for_and_compared_in_constant_time(monkeypatch):
    compared = []
    real = serve_http.hmac.compare_digest
    monkeypatch.setattr(serve_http.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    with client(model(), api_keys=("one", "two")) as http:
        for headers in (
            {},
            {"Authorization": "Bearer three"},
            {"Authorization": "Bearer "},
            {"X-API-Key": "on"},
        ):
            for call in (
                lambda h: http.post(URL, json=BODY, headers=h),
                lambda h: http.get("/metrics", headers=h),
            ):
                reply = call(headers)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
                assert reply.headers["www-authenticate"] == "Bearer"
        compared.clear()
        for headers in (
            {"Authorization": "Bearer one"},
            {"authorization": "bearer two"},
            {"X-API-Key": "two"},
        ):
            assert http.post(URL, json=BODY, headers=headers).status_code == 200
        assert compared == [b"one", b"two"] * 3, "every key is compared, whichever fits"
        assert http.get("/health").status_code == 200  # who watches a server has no key
        odd = http.post(URL, json=BODY, headers={"Authorization": "Bearer é".encode()})
        assert odd.status_code == 401


def test_big_bodies_are_refused_with_and_without_a_length():
    with client(model(), max_body_mib=0.01) as http:
        big = json.dumps({"prompt": "x" * 20_000}).encode()
        for content in (big, iter([big[:5000]] * 5)):
            reply = http.post(URL, content=content)
            assert reply.status_code == 413
            assert "larger than this server's 0.01 MiB" in reply.json()["error"]["message"]
        assert http.post(URL, json=BODY).status_code == 200


def test_a_full_queue_says_when_to_come_back():
    model, content = says("x = 1\n" * 60, passes=4), {"prompt": "a:", "max_tokens": 99, "stream": True}
    with client(model, max_queue=1) as http, http.stream("POST", URL, json=content) as running:
        lines = running.iter_lines()  # let go of, it would close the connection
        next(lines)
        reply = http.post(URL, json=BODY)
        assert reply.status_code == 429
        assert (reply.headers["retry-after"], reply.json()["error"]["code"]) == ("1", "queue_full")


@pytest.mark.parametrize("path", ["/nix", "/v1/completions"])
def test_wrong_paths_and_methods(path):
    with client(model()) as http:
        reply = http.get(path)
        assert reply.status_code == (404 if path == "/nix" else 405)
        assert path in reply.json()["error"]["message"]
        if path == "/nix":
            assert http.get("/v1/fim/nix").json()["error"]["code"] == "not_found"


def test_pages_of_other_origins_are_kept_out():
    with client(model(), only_local_names=True) as http:
        local = {"Host": "localhost:8012"}
        assert http.post(URL, json=BODY, headers=local).status_code == 200
        own = {**local, "Origin": "http://localhost:8012"}
        assert http.post(URL, json=BODY, headers=own).status_code == 200
        for headers in (
            {**local, "Origin": "http://evil.example"},
            {"Host": "evil.example"},
            {**local, "Origin": "null"},
            {**local, "Origin": "http://["},
        ):
            reply = http.post(URL, json=BODY, headers=headers)
            assert reply.status_code == 403, headers
            assert "access-control-allow-origin" not in reply.headers
    with client(model(), cors=("http://good.example",)) as http:
        good = {"Origin": "http://good.example"}
        reply = http.post(URL, json=BODY, headers=good)
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (
            200,
            "http://good.example",
        )
        asked = {
            **good,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        assert http.options(URL, headers=asked).status_code == 200
        assert http.post(URL, json=BODY, headers={"Origin": "http://evil.example"}).status_code == 403


def test_metrics_are_prometheus_text():
    with client(model()) as http:
        for _ in range(3):
            http.post(URL, json=BODY)
        http.get("/made/up/path")
        reply = http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {}
    for line in reply.text.splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP \w+ .+|TYPE \w+ (counter|gauge|histogram))", line)
            continue
        found = re.fullmatch(r'(\w+(?:\{(?:\w+="[^"]*",?)*\})?) ([-+0-9.e]+|NaN)', line)
        assert found, line
        assert found[1] not in values, "said twice"
        values[found[1]] = float(found[2])
    assert values['codegen2_http_requests_total{path="/v1/completions",status="200"}'] == 3
    assert values['codegen2_http_requests_total{path="other",status="404"}'] == 1
    assert values["codegen2_written_tokens_total"] == 6
    assert values["codegen2_first_token_seconds_count"] == 3
    assert values["process_resident_memory_bytes"] > 1e6
    assert values["codegen2_model_loaded"] == 1


@pytest.mark.parametrize("log_prompts", [False, True])
def test_logs_have_nobody_s_code_unless_asked_to(caplog, log_prompts):
    caplog.set_level("INFO", "codegen2")
    with client(model(), log_prompts=log_prompts) as http:
        http.post(URL, json={"prompt": "TOP_SECRET:", "max_tokens": 2})
        http.post(URL, json={"prompt": "TOP_SECRET:", "max_tokens": "TOP_SECRET"})
        http.post(URL + "?TOP_SECRET=1", content=b"TOP_SECRET")
        http.get("/TOP_SECRET")
    records = [r for r in caplog.records if r.name in ("codegen2.serve", "codegen2.worker")]
    events = [json.loads(JsonLine().format(r)) for r in records]
    assert {"request", "loaded"} <= {e["event"] for e in events}
    assert [e["status"] for e in events if e["event"] == "request"] == [200, 400, 400, 404]
    assert ("TOP_SECRET" in json.dumps(events)) == log_prompts


def test_the_description_is_served():
    with client(model()) as http:
        described = http.get("/openapi.json").json()
        assert described["openapi"] == "3.1.0"
        for path, methods in described["paths"].items():
            if "{" not in path:
                for method in methods:
                    assert http.request(method, path, json={}).status_code != 405, path
        assert set(described["paths"]) >= {"/v1/completions", "/health", "/metrics", "/tokenize"}


def test_users_with_keys_are_kept_apart():
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    body = {"prompt": "secret = 'abcdefgh'\n" * 6, "max_tokens": 2}

    def cached(headers):
        usage = http.post(URL, json=body, headers=headers).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    with client(model(), api_keys=("one", "two")) as http:
        assert (cached(two), cached(one)) == (0, 0)
        assert cached(two) > 10
        unload = {"model": "x", "keep_alive": 0}
        refused = http.post("/api/generate", json=unload, headers=two)
        assert refused.status_code == 403
        assert "operator" in refused.json()["error"]
        http.post("/api/generate", json={**unload, "prompt": "a:", "stream": False}, headers=two)
        assert http.get("/health").json()["model"] == "ready"
        assert http.get("/metrics", headers=two).status_code == 403
        told = http.get("/metrics", headers=one).text
        assert 'codegen2_written_tokens_total{user="key 2"}' in told
        assert http.post("/api/generate", json=unload, headers=one).status_code == 200
        assert http.get("/health").json()["model"] == "unloaded"


def test_without_keys_all_are_one_user():
    body = {"prompt": "shared = 'abcdefgh'\n" * 6, "max_tokens": 2}
    with client(model()) as http:
        counts = [http.post(URL, json=body).json()["usage"] for _ in range(2)]
        assert counts[1]["prompt_tokens_details"]["cached_tokens"] > 10
        assert http.get("/metrics").status_code == 200
        assert http.get("/health", headers={"Host": "LOCALHOST:8012"}).status_code == 200


def test_a_long_keep_alive_is_refused_at_once():
    with client(model()) as http:
        reply = http.post("/api/generate", json={"model": "x", "keep_alive": "9" * 1_000_000})
        assert reply.status_code == 400
