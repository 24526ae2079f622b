package plan

import (
	"time"

	"shoal/controller/resource"
)

func Affected(old, changed resource.Resource, before, after resource.Reader) (hosts map[string]struct{}, all bool) {
	return nil, true
}

func setVTEPs(tx resource.Tx) error { return nil }

func Due(r resource.Reader, now time.Time) bool { return false }
func Tick(tx resource.Tx) (bool, error)         { return false, nil }

type HostDiff struct{}

func DocumentDiff(before, after resource.Reader) ([]HostDiff, error) { return nil, nil }
