"""When a machine that says nothing is distrusted, and given up."""

from splitwise.scheduling.silence import (
    BEAT_PERIOD_S,
    LOOK_PERIOD_S,
    QUIET_LOOKS,
    SILENT_LOOKS,
    Hearing,
    Silence,
)


def test_who_reports_in_time_or_a_beat_late_is_heard() -> None:
    silence = Silence(0.0)
    assert 2 * BEAT_PERIOD_S < QUIET_LOOKS * LOOK_PERIOD_S  # one beat may come late
    for look in range(1, 200):
        beat = look * LOOK_PERIOD_S // (2 * BEAT_PERIOD_S)
        assert not silence.look(beat)
    assert silence.hearing is Hearing.HEARD


def test_silence_makes_quiet_then_silent_and_a_word_is_enough() -> None:
    silence = Silence(7.0)
    changes = {look: silence.hearing for look in range(1, SILENT_LOOKS + 9) if silence.look(7.0)}
    assert changes == {QUIET_LOOKS: Hearing.QUIET, SILENT_LOOKS: Hearing.SILENT}
    silence = Silence(7.0)
    for _ in range(QUIET_LOOKS):
        silence.look(7.0)
    assert silence.look(7.1) and silence.hearing is Hearing.HEARD
    assert not silence.look(7.2)
    assert not any(silence.look(7.2) for _ in range(QUIET_LOOKS - 1))
    assert silence.look(7.2) and silence.hearing is Hearing.QUIET
