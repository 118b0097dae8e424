"""The life of a job, as a value."""

from hypothesis import given
from hypothesis import strategies as st

from services.aggregator import job_state
from services.aggregator.job_state import State
from services.aggregator.protocol import (
    Abandon,
    Accepted,
    AskAgain,
    AskAnother,
    Close,
    Committed,
    End,
    Evaluate,
    Evaluated,
    Failed,
    Interrupted,
    Joined,
    Look,
    Looked,
    Open,
    Opened,
    Pause,
    Paused,
    Rejected,
    Resumed,
    Review,
    Reviewed,
    Stopped,
    Ticked,
    Untested,
    Wait,
)
from shared.job import job_spec

ALIVE = Looked({"cpu": 2})


def spec(count: int = 2, clients: int = 4, evaluate: int = 1, **changes):
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": clients},
            "rounds": {"count": count, "target": 3, "minimum": 2, "deadline": "10s"} | changes,
            "evaluate": {"every": evaluate},
            "pool": "cpu",
        }
    )


def play(state: State, *inputs, now: float = 0.0):
    """The state after several happenings, and all their effects in order."""
    effects = []
    for received in inputs:
        state, more = job_state.step(state, received, now)
        effects += more
    return state, effects


def opened(job=None, committed: int = 0) -> State:
    """A job whose next round is open."""
    state, effects = job_state.begin(job or spec(), committed)
    assert effects == (Look(),)
    state, _ = play(state, ALIVE, Opened(10.0), Reviewed(10.0))
    return state


def test_a_round_closes_at_its_target() -> None:
    """The third of four updates closes a round whose target is three."""
    state, effects = play(opened(), Accepted("client-0"), Accepted("client-2"))
    assert effects == []

    state, effects = play(state, Accepted("client-1"))
    assert effects == [Close(1)]


def test_a_round_closes_at_its_deadline_with_the_minimum() -> None:
    """Two of three are enough once the deadline has passed, and not a moment before."""
    state, _ = play(opened(), Accepted("client-0"), Accepted("client-1"))

    assert play(state, Ticked(), now=9.99)[1] == []
    assert play(state, Ticked(), now=10.0)[1] == [Close(1)]


def test_a_round_below_its_minimum_fails_the_job_with_the_counts() -> None:
    """The reason says how many came, how many were needed, how many were asked."""
    state, _ = play(opened(), Accepted("client-0"), Failed("client-3"))
    state, effects = play(state, Ticked(), now=10.0)

    assert isinstance(effects[0], Abandon)
    assert isinstance(effects[1], End)
    assert "round 1 has 1 of the 2 updates it needs at its deadline (asked 4, failed 1)" in effects[1].reason
    assert state.phase == "ended"


def test_a_round_below_its_minimum_can_be_tried_again() -> None:
    """`retry` opens the round anew, up to `attempts` times, then fails."""
    state = opened(spec(below_minimum="retry", attempts=2))
    state, effects = play(state, Ticked(), now=10.0)
    assert [type(effect) for effect in effects] == [Abandon, Look]

    state, effects = play(state, ALIVE, Opened(10.0), now=10.0)
    assert effects[0] == Open(1, 2, ("client-0", "client-1", "client-2", "client-3"))

    state, effects = play(state, Ticked(), now=20.0)
    assert [type(effect) for effect in effects] == [Abandon, End]


def test_nobody_is_waited_for_who_has_said_that_they_cannot() -> None:
    """When all have answered, the round closes with the minimum, or fails, at once."""
    enough, _ = play(opened(), Accepted("client-0"), Accepted("client-1"), Failed("client-2"))
    assert play(enough, Failed("client-3"))[1] == [Close(1)]

    few, _ = play(opened(), Accepted("client-0"), Failed("client-1"), Failed("client-2"))
    assert isinstance(play(few, Failed("client-3"))[1][1], End)


def test_a_round_that_nobody_could_deliver_to_ends_with_the_words_of_the_first() -> None:
    """Those of another attempt are forgotten."""
    state = opened(spec(below_minimum="retry", attempts=2))
    for number in range(4):
        state, effects = play(state, Failed(f"client-{number}", "data.path: there is none"))
    assert isinstance(effects[0], Abandon)
    assert "(asked 4, failed 4); client-0: data.path: there is none; trying again" in effects[0].reason

    state, _ = play(state, ALIVE, Opened(10.0), now=10.0)
    _, effects = play(state, Ticked(), now=20.0)
    assert isinstance(effects[1], End)
    assert effects[1].reason.endswith("(asked 4, failed 0)")


def test_a_refused_answer_is_an_answer() -> None:
    """Nobody waits for the deadline where the last answer was refused, and its reason is the round's."""
    first, _ = play(job_state.begin(spec(), -1)[0], ALIVE, Opened(10.0), Reviewed(10.0))
    (asked,) = first.cohort
    _, effects = play(first, Rejected(asked, "its update is refused: b holds NaN", final=True))

    assert [type(effect) for effect in effects] == [Abandon, End]
    assert effects[1].outcome == "failed"
    assert effects[1].reason == (
        "round 0 has 0 of the 1 updates it needs and nobody is left to answer (asked 1, failed 0, refused 1); "
        f"{asked}: its update is refused: b holds NaN"
    )


def test_what_is_refused_and_no_answer_shuts_nobody_out() -> None:
    """Its client is waited for, and asked again; at the deadline the reason says that something was refused."""
    first, _ = play(job_state.begin(spec(), -1)[0], ALIVE, Opened(10.0), Reviewed(10.0))
    (asked,) = first.cohort
    state, effects = play(first, Rejected(asked, "carries no blob", final=False))
    assert effects == []
    assert play(state, Interrupted(), Reviewed(10.0))[1][1:] == [AskAgain(0, 1, (asked,))]
    assert play(state, Accepted(asked))[1] == [Close(0)]

    end = play(state, Ticked(), now=10.0)[1][1]
    assert end.reason.endswith(f"at its deadline (asked 1, failed 0, refused 1); {asked}: carries no blob")


def test_the_true_update_counts_after_a_refused_one() -> None:
    """While its round is open; and a refusal takes nothing back that counts."""
    state, _ = play(opened(), Rejected("client-0", "holds NaN", final=True))
    assert "client-0" not in state.unanswered

    state, effects = play(state, *map(Accepted, ("client-0", "client-1", "client-2")))
    assert effects == [Close(1)]

    state, _ = play(opened(), Accepted("client-0"), Rejected("client-0", "a second update", final=True))
    assert state.accepted == {"client-0"}
    assert not state.failed


def test_a_stranger_that_is_refused_changes_nothing() -> None:
    """Whoever was not asked is not counted among those who were."""
    state = opened()
    assert play(state, Rejected("client-9", "is not in the round's cohort", final=False)) == (state, [])


def test_without_trainers_the_job_waits_until_one_joins() -> None:
    """It says what it waits for, and looks again when somebody joins."""
    state, _ = job_state.begin(spec(), -1)
    state, effects = play(state, Looked({}))
    assert isinstance(effects[0], Wait)
    assert "pool cpu" in effects[0].detail

    state, effects = play(state, Ticked(), Joined(), now=3000.0)
    assert effects == [Look()]
    state, effects = play(state, ALIVE)
    assert isinstance(effects[0], Open)


def test_the_next_round_goes_out_before_the_evaluation() -> None:
    """Trainers should not wait behind an evaluation."""
    state, _ = play(opened(), *map(Accepted, ("client-0", "client-1", "client-2")))
    state, effects = play(state, Committed())

    assert effects == [Look(), Evaluate(1)]
    assert state.round == 2


def test_the_last_evaluation_is_waited_for_but_not_for_ever() -> None:
    """The job ends with the figures of its last model, or without them after the deadline."""
    state = opened(committed=1)
    state, _ = play(state, *map(Accepted, ("client-0", "client-1", "client-2")))
    state, effects = play(state, Committed())
    assert effects == [Evaluate(2)]

    assert play(state, Evaluated(1))[1] == []
    assert play(state, Evaluated(2))[1] == [End("finished")]
    assert isinstance(play(state, Ticked(), now=61.0)[1][0], End)


def test_stop_ends_a_job_in_any_phase() -> None:
    """An open round is abandoned first."""
    state, _ = job_state.begin(spec(), -1)
    waiting, _ = play(state, Looked({}))
    assert play(waiting, Stopped("enough"))[1] == [End("stopped", "enough")]
    assert play(opened(), Stopped("enough"))[1] == [Abandon(1, 1, "stopped", "enough"), End("stopped", "enough")]


def test_a_finished_job_resumed_is_finished() -> None:
    """There is nothing to do after the last round."""
    assert job_state.begin(spec(count=2), 2)[1] == (End("finished"),)


CLIENTS = tuple(f"client-{number}" for number in range(4))


def test_an_owners_first_round_looks_into_the_store_before_it_asks() -> None:
    """An earlier owner may have asked already: what has arrived counts, and only the others are asked."""
    state, _ = job_state.begin(spec(), 0)
    state, effects = play(state, ALIVE)
    assert effects == [Open(1, 1, CLIENTS, ask=False)]

    state, effects = play(state, Opened(10.0))
    assert effects == [Review(1)]
    state, effects = play(state, Accepted("client-2"), Reviewed(9.0))
    assert effects == [AskAgain(1, 1, ("client-0", "client-1", "client-3"), first=True)]

    state, _ = play(state, *map(Accepted, ("client-0", "client-1")))
    state, _ = play(state, Committed(), ALIVE)
    assert state.recovering is False


def test_an_open_round_is_taken_over_with_what_it_has() -> None:
    """Those that have answered are not asked again; with the target reached it closes at once."""
    state, effects = job_state.reopened(spec(), 1, 1, CLIENTS, frozenset({"client-1"}), frozenset({"client-3"}))
    assert effects == (Review(1),)
    assert play(state, Reviewed(5.0))[1] == [AskAgain(1, 1, ("client-0", "client-2"))]

    whole, _ = job_state.reopened(spec(), 1, 1, CLIENTS, frozenset(CLIENTS[:3]), frozenset())
    assert play(whole, Reviewed(5.0))[1] == [Close(1)]


def test_after_an_interruption_the_round_is_looked_at_again_but_not_for_ever() -> None:
    """Each time the unanswered are asked again, until there is no point in it."""
    state = opened()
    rung = 0
    for _ in range(job_state.ASKS + 5):
        state, effects = play(state, Interrupted(), Reviewed(10.0))
        rung += sum(isinstance(effect, AskAgain) for effect in effects)
    assert rung == job_state.ASKS - 1  # one was in its opening


def test_a_failed_attempt_under_an_earlier_owner_is_followed_by_the_next() -> None:
    """Or by the job's end, with the reason that was recorded."""
    again, effects = job_state.abandoned(spec(below_minimum="retry", attempts=2), 1, 1, "too few")
    assert (again.attempt, effects) == (2, (Look(),))
    assert job_state.abandoned(spec(), 1, 1, "too few")[1] == (End("failed", "too few"),)


def test_pause_lets_the_open_round_finish_and_opens_no_other() -> None:
    """The work of its clients is not thrown away; a resumed job goes on as if nothing had been."""
    state, effects = play(opened(spec(evaluate=0)), Paused("lunch"))
    assert effects == []
    paused, effects = play(state, *map(Accepted, CLIENTS[:3]), Committed())
    assert effects == [Close(1), Pause("lunch")]
    assert paused.phase == "ended"

    state, effects = play(state, Resumed(), *map(Accepted, CLIENTS[:3]), Committed())
    assert effects == [Close(1), Look()]


def test_pause_ends_waiting_at_once() -> None:
    """A job without trainers is paused where it stands."""
    state, _ = job_state.begin(spec(), -1)
    assert play(state, Looked({}), Paused("lunch"))[1][-1] == Pause("lunch")


def test_a_job_does_not_wait_for_trainers_for_ever() -> None:
    """`rounds.wait` ends it, and joining trainers that are too few do not begin the wait anew."""
    state, _ = job_state.begin(spec(wait="1h"), -1, waited=600.0)
    state, _ = play(state, Looked({}))
    state, _ = play(state, Joined(), Looked({}), now=2000.0)
    assert play(state, Ticked(), now=2999.0)[1] == []

    (end,) = play(state, Ticked(), now=3000.0)[1]
    assert (end.outcome, "waited 3600 s" in end.reason, "pool cpu" in end.reason) == ("failed", True, True)


def test_a_job_taken_over_after_its_last_round_is_still_evaluated() -> None:
    """Its owner died between the commit and the figures."""
    state, effects = job_state.begin(spec(count=2), 2, now=5.0, evaluated=False)
    assert effects == (Evaluate(2),)
    assert play(state, Evaluated(2))[1] == [End("finished")]


inputs = st.one_of(
    st.just(ALIVE),
    st.just(Looked({})),
    st.just(Opened(10.0)),
    st.sampled_from([Accepted(f"client-{number}") for number in range(4)]),
    st.sampled_from([Failed(f"client-{number}") for number in range(5)]),
    st.just(Committed()),
    st.integers(0, 2).map(Evaluated),
    st.just(Joined()),
    st.just(Interrupted()),
    st.just(Reviewed(10.0)),
    st.just(Paused("lunch")),
    st.just(Resumed()),
    st.just(Ticked()),
)


@given(st.lists(st.tuples(inputs, st.floats(0, 30)), max_size=80))
def test_rounds_only_move_forward_and_close_once(story) -> None:
    """Whatever happens in whatever order: no round is closed twice or out of turn, and nothing follows the end."""
    state, _ = job_state.begin(spec(below_minimum="retry"), -1)
    closed, ended, now = [], 0, 0.0
    for received, passes in story:
        now += passes
        state, effects = job_state.step(state, received, now)
        for effect in effects:
            assert not ended
            if isinstance(effect, Close):
                closed.append(effect.round)
        ended += sum(isinstance(effect, End) for effect in effects)

    assert closed == list(range(len(closed)))
    assert ended <= 1


# --- asynchronous rounds ------------------------------------------------------------------------


def buffered(buffer: int = 2, staleness: int = 2, clients: int = 4, count: int = 9, **changes):
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": clients},
            "rounds": {"count": count, "deadline": "10s"},
            "strategy": {"name": "fedbuff", "buffer_size": buffer, "max_staleness": staleness},
            "evaluate": {"every": 0},
            "pool": "cpu",
        }
        | changes
    )


def test_a_full_buffer_closes_a_round_and_the_others_go_on() -> None:
    """Who has not answered is carried into the next round, and is not asked again."""
    state = opened(buffered())
    state, effects = play(state, Accepted("client-0"), Accepted("client-2"))
    assert effects == [Close(1)]

    state, effects = play(state, Committed(), ALIVE)
    cohort = ("client-0", "client-1", "client-2", "client-3")
    assert effects == [Look(), Open(2, 1, cohort, in_flight={"client-1": 1, "client-3": 1})]
    assert (state.asked("client-1"), state.asked("client-0")) == (1, 2)


def test_who_is_at_work_follows_from_the_manifest() -> None:
    """As it does for the next owner: an update may have been accepted, and a failure told, that was not heard of."""
    state, _ = play(opened(buffered()), Accepted("client-0"), Failed("client-1"), Accepted("client-2"))
    state, effects = play(state, Committed(frozenset({"client-0", "client-2", "client-3"})), ALIVE)

    assert isinstance(effects[-1], Open)
    assert effects[-1].in_flight == {"client-1": 1}


def test_whose_update_would_be_too_stale_is_asked_anew() -> None:
    """After `max_staleness` rounds nobody waits for it any more."""
    state = opened(buffered(staleness=1))
    for number in (1, 2):
        state, _ = play(state, Accepted("client-0"), Accepted("client-2"))
        state, effects = play(state, Committed(), ALIVE, Opened(10.0), Reviewed(10.0))
        in_flight = next(effect.in_flight for effect in effects if isinstance(effect, Open))
        assert in_flight == ({"client-1": 1, "client-3": 1} if number == 1 else {})


def test_at_its_deadline_an_asynchronous_round_closes_with_one_update() -> None:
    """One is enough, unless the job file says otherwise; none is not."""
    state, _ = play(opened(buffered()), Accepted("client-0"))
    assert play(state, Ticked(), now=10.0)[1] == [Close(1)]

    state, effects = play(opened(buffered()), Ticked(), now=10.0)
    assert isinstance(effects[0], Abandon)


def test_an_attempt_that_failed_takes_those_along_who_were_at_work() -> None:
    """They were told that it is over, so all are asked anew."""
    job = buffered(rounds={"count": 9, "deadline": "10s", "below_minimum": "retry"})
    state, _ = play(opened(job), Accepted("client-0"), Accepted("client-2"))
    state, _ = play(state, Committed(), ALIVE, Opened(10.0), Reviewed(10.0))
    state, effects = play(state, Ticked(), ALIVE, now=20.0)

    assert effects[-1] == Open(2, 2, ("client-0", "client-1", "client-2", "client-3"))


def test_who_is_at_work_is_rung_for_the_round_that_it_began_in() -> None:
    """A second ring names the round that a client was asked in."""
    state, _ = play(opened(buffered()), Accepted("client-0"), Accepted("client-2"))
    state, _ = play(state, Committed(), ALIVE, Opened(10.0), Reviewed(10.0), Accepted("client-1"))
    state, effects = play(state, Interrupted(), Reviewed(10.0))

    assert effects == [Review(2), AskAgain(2, 1, ("client-0", "client-2", "client-3"), in_flight={"client-3": 1})]


# --- silos ----------------------------------------------------------------------------------------


def siloed(**changes):
    document = {
        "name": "t",
        "model": {"name": "softmax"},
        "data": {"name": "m:f"},
        "rounds": {"count": 2, "minimum": 2, "deadline": "10s"},
        "silos": ["a", "b", "c"],
    }
    return job_spec.parse(document | changes)


def test_a_job_begins_with_the_first_silo_whose_data_fit() -> None:
    """Without a word in the job file about attempts: each silo has one."""
    here = Looked(dict.fromkeys("abc", 1))
    state, _ = job_state.begin(siloed(), -1)
    asked = []
    for attempt in (1, 2, 3):
        state, effects = play(state, here, Opened(10.0), Reviewed(10.0))
        assert state.attempt == attempt
        asked += state.cohort
        state, effects = play(state, Failed(state.cohort[0], "labels that are not declared"))
    assert sorted(asked) == ["a", "b", "c"]
    assert isinstance(effects[-1], End)
    assert "labels that are not declared" in effects[-1].reason

    state, _ = job_state.begin(siloed(), 0)  # a later round has the attempts that the job file grants
    state, effects = play(state, here, Opened(10.0), Reviewed(10.0), *(Failed(silo, "x") for silo in "abc"))
    assert isinstance(effects[-1], End)


def test_another_silo_is_asked_for_a_test_set_whatever_the_job_does_meanwhile() -> None:
    """The next round is open by then."""
    state, _ = job_state.begin(siloed(), 0)
    state, _ = play(state, Looked(dict.fromkeys("abc", 1)), Opened(10.0), Reviewed(10.0))
    assert play(state, Untested(0)) == (state, [AskAnother(0)])


def test_a_job_that_measured_nothing_says_so_at_its_end() -> None:
    """It has finished, and its model is there."""
    state, _ = job_state.begin(siloed(), 2, evaluated=False)
    assert play(state, Evaluated(2, lacking="no test set"))[1] == [End("finished", "no test set")]
    assert play(state, Evaluated(2, "enough", "no test set"))[1] == [End("finished", "enough")]


# --- an early end -------------------------------------------------------------------------------


def stopping_at(target: float = 0.9):
    return job_spec.parse(
        {
            "name": "t",
            "model": {"name": "softmax"},
            "data": {"name": "digits", "clients": 4},
            "rounds": {"count": 9, "target": 3, "deadline": "10s"},
            "evaluate": {"every": 1, "stop": {"target": target}, "deadline": "20s"},
            "pool": "cpu",
        }
    )


def test_a_job_that_may_end_early_evaluates_before_it_goes_on() -> None:
    """The model that is good enough is the last one; otherwise the next round is opened."""
    state, _ = play(opened(stopping_at()), *map(Accepted, ("client-0", "client-1", "client-2")))
    state, effects = play(state, Committed())
    assert (state.phase, effects) == ("evaluating", [Evaluate(1)])

    assert play(state, Evaluated(1, "it is good"))[1] == [End("finished", "it is good")]
    going_on, effects = play(state, Evaluated(1))
    assert (going_on.round, effects) == (2, [Look()])
    going_on, effects = play(state, Ticked(), now=20.0)
    assert (going_on.round, effects) == (2, [Look()])


def test_a_pause_while_evaluating_comes_before_the_next_round() -> None:
    """And a job that is good enough by then has ended."""
    state, _ = play(opened(stopping_at()), *map(Accepted, ("client-0", "client-1", "client-2")))
    state, _ = play(state, Committed(), Paused("why"))

    assert play(state, Evaluated(1))[1] == [Pause("why")]
    assert play(state, Evaluated(1, "good"))[1] == [End("finished", "good")]


def test_a_job_that_was_good_enough_is_not_gone_on_with() -> None:
    """Whoever takes it over reads so in the record."""
    state, effects = job_state.begin(stopping_at(), 3, done="accuracy is 0.95")

    assert (state.phase, effects) == ("ended", (End("finished", "accuracy is 0.95"),))
