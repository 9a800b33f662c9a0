"""The faults, by their cases in the fault catalogue: what broke elsewhere, made to break here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """Other text in a source file.

    Args:
        file: Below the package.
        old: It must be there exactly once, or the plant is out of date.
    """

    file: str
    old: str
    new: str

    def made_in(self, source: str) -> str:
        """The source with the fault.

        Raises:
            ValueError: The old text is not there exactly once.
        """
        if (times := source.count(self.old)) != 1:
            raise ValueError(f"{self.file} has this {times} times, not once:\n{self.old}")
        return source.replace(self.old, self.new)


@dataclass(frozen=True)
class Plant:
    """One fault.

    Args:
        case: Its name in the fault catalogue.
        story: How it was met elsewhere.
        edits: What makes it here.
        tests: Among these one must fail, and all pass without the fault; as pytest takes them.
    """

    case: str
    story: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    def put_into(self, package: Path) -> None:
        """Plant it in the package of this folder.

        Raises:
            ValueError: It does not fit today's sources.
        """
        for edit in self.edits:
            file = package / edit.file
            file.write_text(edit.made_in(file.read_text()))


PLANTS = (
    Plant(
        "A1",
        "The loop retries whatever comes, its caller's cancellation too: timeouts are ignored.",
        (
            Edit(
                "inline.py",
                """
            except Exception as error:
                if self.is_cancelled():
                    await self.cancel(error)
                again = self.judge(error)
                if again is None:
                    raise
                wait = again
""",
                """
            except BaseException as error:
                again = self.judge(error) if isinstance(error, Exception) else wait
                if again is None:
                    raise
                wait = again
""",
            ),
        ),
        ("tests/faults/test_cancellation.py",),
    ),
    Plant(
        "A3",
        "A library below the target cancels itself: the job ends without a word.",
        (
            Edit(
                "run.py",
                """
        except BaseException as error:  # SystemExit here would stop the whole event loop
""",
                """
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self.cut is None:
                raise
""",
            ),
        ),
        ("tests/faults/test_cancellation.py",),
    ),
    Plant(
        "A5",
        "A caller leaves while its BEGIN waits for the lock; the thread gets it, and nobody ends"
        " the transaction.",
        (
            Edit(
                "backends/sqlite/executor.py",
                """
        self.submit(run, told, writes=writes)
        return await future
""",
                """
        self.submit(run, told, writes=writes)
        try:
            return await future
        except asyncio.CancelledError:
            self.submit(lambda store: store.db.execute("BEGIN IMMEDIATE"), ignore, writes=False)
            raise
""",
            ),
        ),
        ("tests/chaos/test_outside.py::test_callers_are_cancelled_while_the_store_is_locked",),
    ),
    Plant(
        "B1",
        "Only weak references are kept to the tasks: work that nobody else knows is collected.",
        (
            Edit(
                "background.py",
                "self._workers: set[asyncio.Task[None]] = set()",
                'self._workers = __import__("weakref").WeakSet()',
            ),
            Edit(
                "background.py",
                "worker = self._group.create_task(self._serve_inbox())",
                "worker = asyncio.create_task(self._serve_inbox())",
            ),
            Edit(
                "work.py",
                "self.runs: dict[str, Run] = {}",
                'self.runs = __import__("weakref").WeakValueDictionary()',
            ),
            Edit(
                "run.py",
                """
        "_task",
        "claim",
""",
                """
        "_task",
        "__weakref__",
        "claim",
""",
            ),
        ),
        ("tests/faults/test_concurrency.py",),
    ),
    Plant(
        "B3",
        "The worker lives in the context of the caller that happened to start it: one user's"
        " identity stamps the work of all others.",
        (
            Edit(
                "run.py",
                "self._call(service.function, arguments), context=context",
                "self._call(service.function, arguments)",
            ),
        ),
        ("tests/faults/test_concurrency.py",),
    ),
    Plant(
        "B10",
        "One unexpected error in the dispatcher: it stays idle for ever in a process that looks"
        " alive.",
        (
            Edit(
                "backends/memory.py",
                """
            if self._runner is not None:
                self._runner.fail(error)
            raise
""",
                """
            del error
""",
            ),
        ),
        ("tests/faults/test_inside.py",),
    ),
    Plant(
        "D1",
        "Accepted is said before it is on the disk.",
        (
            Edit(
                "backends/sqlite/writer.py",
                """
                for job in jobs:
                    job.do()
        except (sqlite3""",
                """
                for job in jobs:
                    job.do()
                self._tell(_tell_all, jobs)
            return
        except (sqlite3""",
            ),
        ),
        (
            "tests/sqlite/test_sqlite_sync.py::test_each_accept_is_synced_before_it_returns",
            "tests/sqlite/test_sqlite_faults.py::test_several_in_a_row",
        ),
    ),
    Plant(
        "D2",
        "The outcome is told first and written down later: a crash between them turns a success"
        " that was told into a failure.",
        (
            Edit(
                "backends/sqlite/backend.py",
                """
        kept: bool = await self._running.do(
            lambda store: claims.apply(store, row, before, after),
            then=partial(self._applied, claim, after),
        )
        return kept
""",
                """
        known = before.copy()
        self._running.submit(
            lambda store: claims.apply(store, row, known, after), lambda result, error: None
        )
        self._applied(claim, after, True, None)
        return True
""",
            ),
        ),
        ("tests/chaos/test_kill_rounds.py::test_one_process_is_killed_again_and_again",),
    ),
    Plant(
        "D3",
        "A write does not ask whether the row is still the one that was read: a stale worker"
        " overwrites a newer state.",
        (
            Edit(
                "backends/sqlite/rows.py",
                "WHERE id = ? AND token = ? AND owner IS ?",
                "WHERE id = ?",
            ),
            Edit(
                "backends/sqlite/rows.py",
                "(*_live(after, owner, shift), row, before.token, old_owner)",
                "(*_live(after, owner, shift), row)",
            ),
        ),
        ("tests/chaos/test_leases.py::test_a_late_result_is_refused",),
    ),
    Plant(
        "D4",
        "Rescue by elapsed time alone, signs of life or not: a long attempt is made twice.",
        (
            Edit(
                "backends/sqlite/upkeep.py",
                "if known is None or known[0] != beat:",
                "if known is None:",
            ),
        ),
        ("tests/chaos/test_leases.py::test_a_live_owner_keeps_what_it_works_on",),
    ),
    Plant(
        "D7",
        "Attempts are counted when they are over: a payload that kills its process is tried for"
        " ever.",
        (
            Edit(
                "backends/sqlite/rows.py",
                "record.service, record.state, record.token, record.attempts, record.deliveries,",
                "record.service, record.state, record.token,"
                ' record.attempts - (record.state == "running"), record.deliveries,',
            ),
        ),
        (
            "tests/backends/test_sqlite_last_attempt.py",
            "tests/chaos/test_poison.py"
            "::test_poison_is_given_up_and_the_healthy_finish_within_5_restarts",
        ),
    ),
    Plant(
        "D8",
        "Read and then write in one deferred transaction: 'database is locked' at once, whatever"
        " the timeout is.",
        (
            Edit(
                "backends/sqlite/store.py",
                """
            db.execute("BEGIN IMMEDIATE")
            self.moved.clear()
""",
                """
            db.execute("BEGIN")
            self.moved.clear()
""",
            ),
        ),
        ("tests/chaos/test_outside.py::test_callers_are_cancelled_while_the_store_is_locked",),
    ),
    Plant(
        "D11",
        "The disk is full: the write is tried again and again without a pause.",
        (
            Edit(
                "backends/sqlite/working.py",
                "self.set_timer(self._clock.monotonic() + self._pause)",
                "self.set_timer(self._clock.monotonic())",
            ),
        ),
        (
            "tests/sqlite/test_sqlite_faults.py::test_what_fails_is_tried_again_after_pauses_that_grow",
        ),
    ),
    Plant(
        "D14",
        "A deploy renames a service: stored jobs that nobody can run are deleted.",
        (
            Edit(
                "backends/sqlite/upkeep.py",
                "self._store.change(stored, partial(machine.park, because=because))",
                "rows.delete(db, stored.id)",
            ),
        ),
        ("tests/sqlite/test_sqlite_parked.py",),
    ),
    Plant(
        "E4",
        "sys.exit() in a target ends the event loop, and all other jobs with it.",
        (
            Edit(
                "run.py",
                "except BaseException as error:  # SystemExit",
                "except (Exception, asyncio.CancelledError) as error:  # SystemExit",
            ),
        ),
        ("tests/faults/test_exceptions.py",),
    ),
    Plant(
        "E9",
        "A callback raises: the worker dies of it, and the others with it.",
        (
            Edit(
                "work.py",
                "await self._guard(self._deliver, claim)",
                "await self._deliver(claim)",
            ),
            Edit(
                "work.py",
                """
            verdict = self._judge.failed_run(run, service, is_last=self.is_stopping)
            await self._not_delivered(claim, verdict)
""",
                """
            raise run.error
""",
            ),
        ),
        ("tests/faults/test_exceptions.py",),
    ),
    Plant(
        "S1",
        "A deploy's SIGTERM uses up the attempts of what it interrupts.",
        (
            Edit(
                "work.py",
                """
        elif run.cut == "stop":
            await self._give_back(claim)
        elif run.cut != "lost":
            await self._failed(""",
                """
        elif run.cut != "lost":
            await self._failed(""",
            ),
        ),
        ("tests/chaos/test_leases.py::test_an_attempt_that_leaving_cuts_off_does_not_count",),
    ),
    Plant(
        "T1",
        "The backoff overflows after some 1,024 attempts: a loop that should go on for ever dies.",
        (
            Edit(
                "policy.py",
                """
            try:
                wait = min(wait * self.factor ** (attempt - 1), LONGEST)
            except OverflowError:
                wait = LONGEST
""",
                """
            wait = min(wait * self.factor ** (attempt - 1), LONGEST)
""",
            ),
        ),
        ("tests/faults/test_timing.py",),
    ),
    Plant(
        "T3",
        "Due times are stored by the wall clock: a clock that is set hastens or delays them.",
        (
            Edit(
                "backends/sqlite/store.py",
                """
        if meta.get("boot") == boot:
            self.shift = self._known_time(meta, "shift")
            return
""",
                """
        if meta.get("boot") == boot:
            self.shift = utc - monotonic
            return
""",
            ),
        ),
        ("tests/sqlite/test_sqlite_time.py",),
    ),
    Plant(
        "Z1",
        "What can be written but never read again is accepted: it poisons every reader.",
        (
            Edit(
                "storable.py",
                """
                and self._read(data) == value
""",
                "\n",
            ),
        ),
        ("tests/faults/test_serialisation.py",),
    ),
)
