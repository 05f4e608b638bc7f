"""For each incident, what happens when its protection is taken out.

A row is a fault of one line in a copy of the code, and the test that must fail with it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    incident: int
    file: str
    old: str
    """Stands in the file once."""
    new: str
    test: str


_TOKENS = "tests/incidents/test_incident_tokens.py"
_PATHS = "tests/incidents/test_incident_paths.py"
_WIRE = "tests/incidents/test_incident_wire.py"
_LANE = "tests/test_lane.py"
_COPIES = "tests/incidents/test_incident_copies.py"
_LIMITS = "tests/incidents/test_incident_limits.py"
_UPSTREAM = "tests/incidents/test_incident_upstream.py"
_STORE = "tests/incidents/test_incident_store.py"

FAULTS = [
    Fault(
        1,
        "bff/auth.py",
        '_JWS.decode(token, key, algorithms=["HS256"])',
        # (Zeros do not change an HMAC key, but satisfy PyJWT's rule of its length.)
        "jwt.PyJWS().decode(token, key.ljust(64, '\\0'), "
        "algorithms=[jwt.get_unverified_header(token)['alg']])",
        f"{_TOKENS}::test_01_the_algorithm_is_not_taken_from_the_token",
    ),
    Fault(
        2,
        "bff/auth.py",
        '_JWS.register_algorithm("HS256", _Hmac(hashlib.sha256))',
        '_JWS.register_algorithm("HS256", _Hmac(hashlib.sha256)); _JWS._validate_crit = bool',
        f"{_TOKENS}::test_02_an_unknown_crit_is_refused",
    ),
    Fault(
        2,
        "bff/auth.py",
        "< (2, 12)",
        "< (0, 0)",
        f"{_TOKENS}::test_02_an_older_pyjwt_is_refused_at_start",
    ),
    Fault(
        3,
        "bff/auth.py",
        "if wall >= caller.expires:",
        "if False:",
        f"{_TOKENS}::test_03_a_verified_token_is_never_kept_past_its_end",
    ),
    Fault(
        4,
        "bff/auth.py",
        "while self._bytes > self._max_bytes:",
        "while False:",
        f"{_TOKENS}::test_04_a_hundred_thousand_tokens_take_bounded_memory",
    ),
    Fault(
        5,
        "bff/asgi.py",
        'scope["method"], scope["raw_path"], scope.get',
        'scope["method"], b"/" + dict(scope["headers"])[b"host"].partition(b"/")'
        '[2] + scope["raw_path"], scope.get',
        f"{_PATHS}::test_05_no_host_changes_the_decision",
    ),
    Fault(
        6,
        "bff/sessions.py",
        'quote(id_, safe="")',
        "quote(id_)",
        f"{_PATHS}::test_06_upstream_sees_one_encoded_segment_or_nothing",
    ),
    Fault(
        7,
        "bff/sessions.py",
        ' or text in (".", "..")',
        "",
        f"{_PATHS}::test_07_dots_never_ask_for_the_list_of_all_sessions",
    ),
    Fault(
        8,
        "bff/gateway.py",
        "        if limiter is not None:\n            window = limiter.take(address",
        "        if limiter is not None and head.path.startswith(sessions.ROUTE):\n"
        "            window = limiter.take(address",
        f"{_PATHS}::test_08_another_spelling_is_no_way_around_the_limits",
    ),
    Fault(
        9,
        "bff/asgi.py",
        'scope["raw_path"], scope.get("query_string", b"")',
        'scope["raw_path"] + scope["query_string"], scope.get("query_string", b"")',
        f"{_PATHS}::test_09_query_and_fragment_change_nothing_and_go_nowhere",
    ),
    Fault(
        10,
        "bff/limits.py",
        "if not forwarded or not trusted or not is_trusted(peer, trusted):",
        "if not forwarded:",
        f"{_PATHS}::test_10_forwarded_addresses_of_an_untrusted_peer_are_ignored",
    ),
    Fault(
        11,
        "bff/head.py",
        "head.ambiguous |= head.authorization is not None",
        "pass",
        f"{_WIRE}::test_11_two_authorization_headers_are_400",
    ),
    Fault(
        12,
        "bff/upstream.py",
        '(b"authorization", b"Bearer " + key.encode())',
        '(b"connection", b"authorization")',
        f"{_WIRE}::test_12_connection_strips_nothing_of_ours",
    ),
    Fault(
        13,
        "bff/gateway.py",
        'the one door out."""\n        self._authorize(visit, caller, copy)\n',
        'the one door out."""\n',
        "tests/incidents/test_incident_13.py",
    ),
    Fault(
        13,
        "bff/gateway.py",
        "            self._authorize(visit, caller, known)\n            visit.probes = None\n",
        "            visit.probes = None\n",
        "tests/incidents/test_incident_13.py::"
        "test_13_nothing_is_told_of_a_copy_that_is_not_the_callers",
    ),
    Fault(
        14,
        "bff/replies.py",
        'b"cache-control: no-store\\r\\n"',
        'b""',
        f"{_WIRE}::test_14_every_answer_says_how_it_may_be_kept",
    ),
    Fault(
        15,
        "bff/cache.py",
        "if id_ not in (found.id, found.external_id) or found.environment != environment:",
        "if False:",
        f"{_COPIES}::test_15_a_copy_under_a_key_not_its_own_is_dropped_and_counted",
    ),
    Fault(
        15,
        "bff/store.py",
        "in zip(batch, answers, strict=True):",
        "in zip(batch[::-1], answers, strict=True):",
        f"{_STORE}::test_15_ten_thousand_who_leave_hand_nothing_of_the_store_to_others",
    ),
    Fault(
        15,
        "bff/fleet.py",
        "if its_space != space or id_ not in (found.id, found.external_id):",
        "if its_space != space:",
        f"{_STORE}::test_15_a_copy_in_the_store_under_a_key_not_its_own_is_dropped_and_counted",
    ),
    Fault(
        16,
        "bff/gateway.py",
        'the one door out."""\n        self._authorize(visit, caller, copy)\n',
        'the one door out."""\n',
        f"{_COPIES}::test_16_who_waits_along_is_decided_on_individually",
    ),
    Fault(
        17,
        "bff/gateway.py",
        "await asyncio.wait([load.flight for load in loads], timeout=patience)",
        "await asyncio.wait_for(asyncio.gather(*(load.flight for load in loads)), patience)",
        f"{_WIRE}::test_17_a_cancelled_leader_cancels_nobody",
    ),
    Fault(
        18,
        "bff/sessions.py",
        'or asked not in (document["id"], document["externalId"])',
        "",
        f"{_COPIES}::test_18_a_bad_success_is_never_kept_nor_passed_on",
    ),
    Fault(
        18,
        "bff/upstream.py",
        "if len(body) > MAX_BODY_BYTES:",
        "if False:",
        f"{_COPIES}::test_18_a_bad_success_is_never_kept_nor_passed_on",
    ),
    Fault(
        19,
        "bff/replies.py",
        "rate, len(body)),",
        "rate, len(body) + (age > 2)),",
        f"{_COPIES}::test_19_stale_bytes_are_the_fresh_ones",
    ),
    Fault(
        20,
        "bff/sessions.py",
        "id_ = unquote_to_bytes(segment).decode()",
        'id_ = unicodedata.normalize("NFC", unquote_to_bytes(segment).decode())',
        f"{_PATHS}::test_20_ids_that_look_alike_never_share_a_copy",
    ),
    Fault(
        21,
        "bff/replies.py",
        'self._by_origin.get(b"*" if self._any else origin, self._no_origin)',
        "next(iter(self._by_origin.values()))",
        f"{_LIMITS}::test_21_only_the_exact_origin_gets_cors_headers",
    ),
    Fault(
        22,
        "bff/limits.py",
        "for hop in reversed(hops):",
        "for hop in hops:",
        f"{_LIMITS}::test_22_the_leftmost_forwarded_address_is_an_invention",
    ),
    Fault(
        23,
        "bff/limits.py",
        "        if parsed.ipv4_mapped is None:",
        "        if True:",
        f"{_LIMITS}::test_23_mapped_addresses_are_ipv4_and_a_64_is_one",
    ),
    Fault(
        24,
        "bff/auth.py",
        "[environment, subject, texts, actor]",
        "[environment, subject, texts, actor, claims]",
        f"{_TOKENS}::test_24_a_new_token_is_the_same_caller",
    ),
    Fault(
        25,
        "bff/auth.py",
        '_JWS.decode(token, key, algorithms=["HS256"])',
        '_JWS.decode(token, key, algorithms=["HS256"], options={"verify_signature": False})',
        f"{_TOKENS}::test_25_ten_thousand_bad_tokens_cost_upstream_nothing",
    ),
    Fault(
        26,
        "bff/gateway.py",
        "            route=visit.route,\n",
        "            route=visit.head.path.decode('latin-1'),\n",
        f"{_UPSTREAM}::test_26_no_secret_in_any_output",
    ),
    Fault(
        26,
        "bff/parse.py",
        'return "Secret(…)"',
        "return self._text",
        f"{_UPSTREAM}::test_26_check_and_repr_name_no_secret",
    ),
    Fault(
        27,
        "bff/upstream.py",
        "httpx2.create_ssl_context(trust_env=False)",
        "httpx2.create_ssl_context(verify=False, trust_env=False)",
        f"{_UPSTREAM}::test_27_an_unverified_certificate_is_not_talked_to",
    ),
    Fault(
        27,
        "bff/settings.py",
        'if parts.scheme == "http" and not allowed and',
        "if False and",
        f"{_UPSTREAM}::test_27_plain_http_goes_to_loopback_only_or_when_named",
    ),
    Fault(
        28,
        "bff/upstream.py",
        "            return Answer(response.status, told,",
        """            if "location" in told:
                return await self.send(method, Address.read(told["location"]), b"", headers)
            return Answer(response.status, told,""",
        f"{_UPSTREAM}::test_28_a_redirect_is_not_followed",
    ),
    Fault(
        29,
        "bff/wire.py",
        "if self._body and",
        "if False and",
        f"{_WIRE}::test_29_what_two_parsers_may_read_differently_is_400_and_the_end",
    ),
    Fault(
        29,
        "bff/wire.py",
        "            self.cycle.keep_alive = False\n            return True\n",
        "            return True\n",
        f"{_WIRE}::test_29_nothing_is_answered_behind_the_last_request",
    ),
    Fault(
        29,
        "bff/wire.py",
        "elif self._incomplete and not self._in_head:",
        "elif False:",
        f"{_LANE}::test_a_body_that_turns_out_malformed_is_not_answered_again",
    ),
    Fault(
        29,
        "bff/lane.py",
        'self._written[-2] = b"connection: close\\r\\n\\r\\n"',
        "pass",
        f"{_WIRE}::test_29_nothing_is_answered_behind_the_last_request",
    ),
    Fault(
        29,
        "bff/lane.py",
        "            self._check_ahead()\n",
        "            pass\n",
        f"{_LANE}::test_so_many_requests_are_answered_of_a_pipeline_and_no_more",
    ),
    Fault(
        30,
        "bff/app.py",
        "task.add_done_callback(self._tasks.discard)",
        "pass",
        f"{_COPIES}::test_30_ten_thousand_flaps_leave_nothing_behind",
    ),
    Fault(
        30,
        "bff/store.py",
        "            await client.aclose()\n        return _client(",
        "            globals().setdefault('_OPEN', []).append(client)\n        return _client(",
        f"{_STORE}::test_30_a_store_that_comes_and_goes_leaves_nothing_behind",
    ),
    Fault(
        30,
        "bff/store.py",
        "task.add_done_callback(self._told.discard)",
        "pass",
        f"{_STORE}::test_30_a_store_that_comes_and_goes_leaves_nothing_behind",
    ),
    Fault(
        31,
        "bff/gateway.py",
        "if head.id or (path.startswith(sessions.ROUTE) and",
        'if b"healthz" not in path and (path.startswith(sessions.ROUTE) and',
        f"{_PATHS}::test_31_ids_equal_to_route_words_grant_nothing",
    ),
    Fault(
        32,
        "bff/wire.py",
        "if len(self.headers) > bounds.headers or (",
        "if (",
        f"{_WIRE}::test_32_floods_of_headers_are_refused_early",
    ),
    Fault(
        32,
        "bff/wire.py",
        "            self._received > self._bounds.head_bytes\n",
        "            False\n",
        f"{_WIRE}::test_32_floods_of_headers_are_refused_early",
    ),
    Fault(
        32,
        "bff/lane.py",
        "version = self._check()",
        "version = self.parser.get_http_version()",
        f"{_WIRE}::test_32_floods_of_headers_are_refused_early",
    ),
    Fault(
        33,
        "bff/lane.py",
        "        self._begin()\n        self._idle_since = None\n",
        "        self._begin()\n",
        f"{_LANE}::test_idle_connections_close_and_busy_ones_do_not",
    ),
    Fault(
        33,
        "bff/wire.py",
        'self._doors.count("incomplete_request")',
        "return",
        f"{_WIRE}::test_33_fifty_half_sent_heads_are_gone_in_bounded_time",
    ),
    Fault(
        33,
        "bff/wire.py",
        'self._doors.count("unread_answer")',
        "return",
        f"{_WIRE}::test_33_who_never_reads_costs_a_bounded_buffer_for_a_bounded_time",
    ),
    Fault(
        33,
        "bff/wire.py",
        "if self.open > self._bounds.connections:",
        "if False:",
        f"{_WIRE}::test_33_connections_are_bounded_in_all_and_by_address",
    ),
    Fault(
        34,
        "bff/limits.py",
        "if self._allowance < 1 and now < self._allowance_ends:",
        "if False:",
        f"{_COPIES}::test_34_a_429_upstream_is_waited_out",
    ),
    Fault(
        34,
        "bff/limits.py",
        "now + min(max(reset, 0.0), MAX_RESET)",
        "now + max(reset, 0.0)",
        f"{_COPIES}::test_34_an_absurd_reset_stops_nothing_for_long",
    ),
    Fault(
        35,
        "bff/upstream.py",
        "if self._accepted:",
        "if False:",
        f"{_UPSTREAM}::test_35_the_next_key_takes_over_once",
    ),
    Fault(
        35,
        "bff/upstream.py",
        "if status in (_REJECTED, 403):",
        'if status in (_REJECTED, 403): raise Refusal("token_invalid")\n    if False:',
        f"{_UPSTREAM}::test_35_keys_that_are_all_rejected_are_our_trouble_not_the_browsers",
    ),
    Fault(
        36,
        "bff/gateway.py",
        "if visit.probes.exhausted:",
        "if False:",
        f"{_COPIES}::test_36_a_valid_token_probes_no_more_than_bad_ones_do",
    ),
]
