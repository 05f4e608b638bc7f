"""Incident 49: a chat list beyond the budget starves for ever. In virtual time, at the defaults."""

import asyncio

from support.polls import Answer, every, polled_world
from support.virtual_time import run

POLL = 15.0
"""Seconds between two polls of a page, as docs/FRONTEND.md recommends."""
OLDEST = POLL + 4.0
"""Seconds; no session in these histories is shown older: a poll, and the queue of its loads."""


def complete(answer: Answer, names: list[str]) -> bool:
    return (answer.status, answer.shown, answer.late) == (200, names, [])


def test_49_twenty_chats_are_all_shown_at_every_poll() -> None:
    async def history() -> None:
        async with polled_world() as it:
            names = it.add(*(f"chat-{n:02}" for n in range(20)))
            token = it.token("ann", names)

            answers = await every(POLL, 20, lambda: it.page(token))

            assert answers[0].took <= 1.2
            assert all(complete(answer, names) for answer in answers[1:])
            assert max(answer.took for answer in answers) <= 1.2
            assert max(age for a in answers[1:] for age in a.ages.values()) <= OLDEST

    run(history)


def test_49_three_users_of_twenty_chats_get_everything() -> None:
    async def history() -> None:
        async with polled_world() as it:
            people = {
                person: it.add(*(f"{person}-{n:02}" for n in range(20)))
                for person in ("ann", "bob", "eve")
            }

            async def poll(person: str) -> list[Answer]:
                token = it.token(person, people[person])
                return await every(POLL, 20, lambda: it.page(token))

            answers = await asyncio.gather(*map(poll, people))

            for (person, names), polls in zip(people.items(), answers, strict=True):
                assert all(complete(answer, names) for answer in polls[1:]), person
                assert min(len(answer.shown) for answer in polls) >= 3, "nobody got nothing"
                assert max(age for a in polls[1:] for age in a.ages.values()) <= OLDEST
                assert max(answer.took for answer in polls) <= 1.2

    run(history)


def test_49_three_users_who_follow_next_miss_nothing() -> None:
    async def history() -> None:
        async with polled_world() as it:
            people = {
                person: it.add(*(f"{person}-{n:02}" for n in range(20)))
                for person in ("ann", "bob", "eve")
            }

            walks = await asyncio.gather(
                *(it.walk(it.token(person, names)) for person, names in people.items())
            )

            for names, pages in zip(people.values(), walks, strict=True):
                shown = [one for page in pages for one in page.shown]
                assert sorted(shown) == names, "each once"
                assert pages[-1].late == []

    run(history)


def test_49_many_sessions_of_one_caller_age_only_their_own() -> None:
    async def history() -> None:
        async with polled_world(BFF_CACHE_TTL="2") as it:
            big = it.add(*(f"big-{n:03}" for n in range(300)))
            small = it.add(*(f"small-{n}" for n in range(5)))
            busy, token = it.token("big", big), it.token("small", [*small, big[0]])

            async def all_pages() -> Answer:
                return (await it.walk(busy, page_size=100))[-1]

            greedy = asyncio.create_task(every(5.0, 60, all_pages))
            await asyncio.sleep(60)
            await it.page(token)  # its first page may show the copy that the other caller had
            await asyncio.sleep(2)
            answers = await every(2.0, 100, lambda: it.page(token))

            assert {answer.status for answer in answers} == {200}
            assert max(age for a in answers for age in a.ages.values()) <= 6.0, "the shared one too"
            await greedy
            pages = await it.walk(busy, page_size=100)
            assert sorted(one for page in pages for one in page.shown) == big
            oldest = max(age for page in pages for age in page.ages.values())
            assert 15.0 < oldest <= 60.0 + 5.0, "theirs are as old as the budget makes them"

    run(history)


def test_49_late_member_comes_with_the_next_page() -> None:
    async def history() -> None:
        async with polled_world(BFF_UPSTREAM_BUDGET="2/second") as it:
            names = it.add(*(f"chat-{n}" for n in range(9)))
            it.broken.add("chat-3")
            token = it.token("ann", names)

            pages = await it.walk(token, page_size=4)

            shown = [one for page in pages for one in page.shown]
            assert sorted(shown) == [name for name in names if name != "chat-3"], "each once"
            assert [one for page in pages for one in page.broken] == ["chat-3"], "passed over"
            assert any(page.late for page in pages)
            assert all(len(page.shown + page.late + page.broken) <= 4 for page in pages)

    run(history)


def test_49_retrieve_and_lists_do_not_starve_each_other() -> None:
    async def history() -> None:
        async with polled_world() as it:
            lists = {f"p{n}": it.add(*(f"p{n}-{m:02}" for m in range(40))) for n in range(2)}
            chats = it.add(*(f"chat-{n:03}" for n in range(100)))
            single = it.token("ann", chats)

            async def poll(person: str) -> list[Answer]:
                token = it.token(person, lists[person])
                return await every(2.0, 50, lambda: it.page(token, page_size=40))

            polls = asyncio.gather(*map(poll, lists))
            await asyncio.sleep(0.1)
            answers = [
                (await every(1.0, 1, lambda id_=id_: it.get(single, id_)))[0] for id_ in chats
            ]

            assert {answer.status for answer in answers} == {200}, "each is a session never loaded"
            assert max(answer.took for answer in answers) <= 1.3
            for person, pages in zip(lists, await polls, strict=True):
                assert all(complete(page, lists[person]) for page in pages[20:]), person

    run(history)


def test_49_one_caller_takes_half_while_others_want_it() -> None:
    async def history() -> None:
        async with polled_world() as it:
            people = {
                "greedy": it.add(*(f"greedy-{n:03}" for n in range(180))),
                "ann": it.add(*(f"ann-{n:02}" for n in range(30))),
            }
            tokens = {person: it.token(person, names) for person, names in people.items()}
            everything = asyncio.gather(
                *(it.page(tokens["greedy"], page_size=100) for _ in range(2)),
                it.walk(tokens["ann"], page_size=30),
            )
            await everything

            wanted_until = max(when for when, id_ in it.reads if id_.startswith("ann"))
            taken = [id_.partition("-")[0] for when, id_ in it.reads if 0.5 < when <= wanted_until]
            assert taken.count("greedy") <= taken.count("ann") + 1

    run(history)
