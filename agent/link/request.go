package link

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"shoal/agent/install"
	"shoal/desired"
	"shoal/subjects"
)

// Ask asks the controller something about this host, and gives its answer. A refusal is an *install.RefusalError.
func (l *Link) Ask(ctx context.Context, verb string, body []byte) ([]byte, error) {
	nc := l.nc.Load()
	if nc == nil || !nc.IsConnected() {
		return nil, fmt.Errorf("ask the controller for %s: not connected", verb)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, subjects.AgentAPI(l.cfg.Host, verb), body)
	if err == nil {
		err = install.Refused(m)
	}
	if err != nil {
		return nil, fmt.Errorf("ask the controller for %s: %w", verb, err)
	}
	return m.Data, nil
}

// Time asks what the controllers' clock shows.
func (l *Link) Time(ctx context.Context) (time.Time, error) {
	b, err := l.Ask(ctx, desired.TimeVerb, nil)
	if err != nil {
		return time.Time{}, err
	}
	var answer desired.TimeReply
	if err := json.Unmarshal(b, &answer); err != nil || answer.Now.IsZero() {
		return time.Time{}, fmt.Errorf("ask the controller for the time: the answer %q can't be read", b)
	}
	return answer.Now, nil
}

// ReleasePart asks for the bytes of a release of the agent from offset on. It gives none at its end.
func (l *Link) ReleasePart(ctx context.Context, release string, offset uint64) ([]byte, error) {
	req, err := json.Marshal(desired.ReleaseRequest{Release: release, Offset: offset})
	if err != nil {
		return nil, err
	}
	return l.Ask(ctx, desired.ReleaseVerb, req)
}

// URLs asks where the content of an image can be fetched from. The addresses are signed and good for a short while.
func (l *Link) URLs(ctx context.Context, image string) ([]string, error) {
	req, err := json.Marshal(map[string]string{"image": image})
	if err != nil {
		return nil, err
	}
	b, err := l.Ask(ctx, "image-url", req)
	if err != nil {
		return nil, err
	}
	var answer struct {
		URLs []string `json:"urls"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("read the addresses of image %s: %w", image, err)
	}
	if len(answer.URLs) == 0 {
		return nil, fmt.Errorf("read the addresses of image %s: the controller knows none", image)
	}
	return answer.URLs, nil
}
