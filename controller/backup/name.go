package backup

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// idTime is how a backup's id is made of the time when it was asked for.
const idTime = "20060102T150405Z"

// ID is the id of a backup that is asked for at a time.
func ID(at time.Time) string { return at.UTC().Format(idTime) }

// name is what the name of a backup's file says: "shoal-<installation>-<time>-<seq>.tar.age".
type name struct {
	installation string
	at           time.Time
	seq          uint64
	encrypted    bool
}

// installationPart is how much of the installation's public key stands in a name.
const installationPart = 12

func (n name) id() string { return ID(n.at) }

func (n name) String() string {
	s := fmt.Sprintf("shoal-%s-%s-%d.tar", n.installation, n.id(), n.seq)
	if n.encrypted {
		s += ".age"
	}
	return s
}

// parseName reads a name; ok is false for a file that is no backup.
func parseName(s string) (n name, ok bool) {
	rest, ok := strings.CutPrefix(s, "shoal-")
	if !ok {
		return n, false
	}
	rest, n.encrypted = strings.CutSuffix(rest, ".age")
	rest, ok = strings.CutSuffix(rest, ".tar")
	parts := strings.Split(rest, "-")
	if !ok || len(parts) != 3 {
		return n, false
	}
	var err error
	n.installation = parts[0]
	if n.at, err = time.Parse(idTime, parts[1]); err != nil {
		return n, false
	}
	if n.seq, err = strconv.ParseUint(parts[2], 10, 64); err != nil {
		return n, false
	}
	return n, n.String() == s
}
