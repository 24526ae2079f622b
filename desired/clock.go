package desired

import (
	"cmp"
	"time"
)

// TimeVerb is the verb of a connected agent's question what time it is at the controllers. The answer is a TimeReply, to guests as well.
const TimeVerb = "time"

// TimeRequest is that question of somebody without credentials.
type TimeRequest struct {
	// Box is the curve key, "X…", that the answer is sealed to.
	Box string `json:"box"`
}

// TimeReply is what the clock of the leading controller shows.
type TimeReply struct {
	Now time.Time `json:"now"`
}

// Clock is how a host's clock stands against the controllers'.
type Clock struct {
	// OffsetMS is by how many milliseconds the host's is ahead; negative where it is behind.
	OffsetMS int64 `json:"offset_ms"`
	// ErrorMS is how wrong that can be: half the time that question and answer took.
	ErrorMS int64 `json:"error_ms"`
}

// CompareClocks tells how the clock that showed asked stands against one that showed theirs, in an answer that came took later.
func CompareClocks(asked time.Time, took time.Duration, theirs time.Time) Clock {
	return Clock{OffsetMS: asked.Add(took / 2).Sub(theirs).Milliseconds(), ErrorMS: (took/2 + time.Millisecond - 1).Milliseconds()}
}

// Beyond reports whether the clocks surely differ by more than this.
func (c Clock) Beyond(limit time.Duration) bool {
	return max(c.OffsetMS, -c.OffsetMS)-c.ErrorMS > limit.Milliseconds()
}

// String is the offset with its direction, such as "3.2s ahead".
func (c Clock) String() string {
	d := time.Duration(max(c.OffsetMS, -c.OffsetMS)) * time.Millisecond
	for _, unit := range []time.Duration{time.Hour, time.Minute, time.Second} {
		if d >= 10*unit {
			d = d.Round(unit / 10)
			break
		}
	}
	switch cmp.Compare(c.OffsetMS, 0) {
	case 1:
		return d.String() + " ahead"
	case -1:
		return d.String() + " behind"
	default:
		return "exact"
	}
}

// ClockTolerance is how far the clock of a host may be off before that is a fault.
const ClockTolerance = time.Second
