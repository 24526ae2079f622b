package site

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"shoal/controller/release"
	"shoal/subjects"
)

// Artifacts is the bucket of artifacts, an object store as the nats CLI shows it: nats object ls artifacts.
type Artifacts struct{ js jetstream.JetStream }

// Artifacts is where the contents of releases are.
func (s *Site) Artifacts() *Artifacts { return &Artifacts{s.js} }

func (a *Artifacts) bucket(ctx context.Context) (jetstream.ObjectStore, error) {
	o, err := a.js.ObjectStore(ctx, subjects.ArtifactsBucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", subjects.ArtifactsBucket, err)
	}
	return o, nil
}

// Put implements release.Objects.
func (a *Artifacts) Put(ctx context.Context, name string, content []byte) error {
	o, err := a.bucket(ctx)
	if err != nil {
		return err
	}
	if _, err := o.PutBytes(ctx, name, content); err != nil {
		return fmt.Errorf("put %s into bucket %s: %w", name, subjects.ArtifactsBucket, err)
	}
	return nil
}

// Get implements release.Objects. The library compares the digest that was kept beside the content.
func (a *Artifacts) Get(ctx context.Context, name string) ([]byte, error) {
	o, err := a.bucket(ctx)
	if err != nil {
		return nil, err
	}
	b, err := o.GetBytes(ctx, name)
	if errors.Is(err, jetstream.ErrObjectNotFound) {
		return nil, release.ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("get %s from bucket %s: %w", name, subjects.ArtifactsBucket, err)
	}
	return b, nil
}

// Names implements release.Objects.
func (a *Artifacts) Names(ctx context.Context) (map[string]time.Time, error) {
	o, err := a.bucket(ctx)
	if err != nil {
		return nil, err
	}
	infos, err := o.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bucket %s: %w", subjects.ArtifactsBucket, err)
	}
	names := map[string]time.Time{}
	for _, i := range infos {
		names[i.Name] = i.ModTime
	}
	return names, nil
}

// Delete implements release.Objects.
func (a *Artifacts) Delete(ctx context.Context, name string) error {
	o, err := a.bucket(ctx)
	if err != nil {
		return err
	}
	if err := o.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("delete %s from bucket %s: %w", name, subjects.ArtifactsBucket, err)
	}
	return nil
}
