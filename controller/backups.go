package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"shoal/controller/api"
	"shoal/controller/backup"
	"shoal/controller/resource"
	"shoal/controller/site"
	"shoal/subjects"
)

// scratchDir is where copies lie while a backup is made or checked.
const scratchDir = "backup-scratch"

// BackupConfig says where backups go and how.
type BackupConfig struct {
	// To is a directory or "sftp://user@host/directory"; "" for none.
	To   string
	SFTP backup.SFTPConfig
	Seal backup.SealConfig
	// Every is how often one is made by itself, Keep how many stay; 0 for never, and for all.
	Every time.Duration
	Keep  int
}

// prepareBackups reads what is needed for backups, so that a mistake shows at the start and not in the night.
func (c *controller) prepareBackups() (err error) {
	b := c.cfg.Backup
	if c.seal, err = backup.NewSeal(b.Seal); err != nil {
		return err
	}
	if b.To == "" {
		return nil
	}
	c.target, err = backup.NewTarget(b.To, b.SFTP)
	return err
}

// backupService makes backups while this controller leads.
func (c *controller) backupService(asked <-chan struct{}) (*backup.Service, error) {
	return backup.New(backup.Config{
		Target: c.target, Seal: c.seal, Every: c.cfg.Backup.Every, Keep: c.cfg.Backup.Keep,
		Installation: c.id.Installation(), Controller: c.cfg.Name, Version: c.cfg.Version, Identity: c.cfg.Identity,
		Scratch: filepath.Join(c.cfg.Data, scratchDir), Store: c.store, Asked: asked, Log: c.log,
		Snapshot: func(ctx context.Context, dir string) ([]backup.Stream, error) {
			copies, err := c.site.Snapshot(ctx, dir)
			var out []backup.Stream
			for _, s := range copies {
				out = append(out, backup.Stream{Name: s.Name, Messages: s.Messages, First: s.First, Last: s.Last, LastTime: s.LastTime})
			}
			return out, err
		},
		Check: func(ctx context.Context, dir string) (backup.Contents, error) { return checkState(ctx, dir, c.log) },
		Absent: func() []backup.Absent {
			var out []backup.Absent
			for i := range resource.All[*resource.Image](c.store.View()) {
				if i.Stage == resource.ImageReady {
					out = append(out, backup.Absent{What: "image file", ID: i.ID, Name: i.Name, From: i.URL})
				}
			}
			return out
		},
	})
}

// journalSize is what the journal takes.
func (c *controller) journalSize(ctx context.Context) (messages, bytes uint64, err error) {
	s, err := c.site.JetStream().Stream(ctx, subjects.JournalStream)
	if err != nil {
		return 0, 0, fmt.Errorf("size of the journal: %w", err)
	}
	st := s.CachedInfo().State
	return st.Msgs, st.Bytes, nil
}

// usageAges are the ages for which it is told what keeping no more than that would free.
func usageAges() []time.Duration {
	const day = 24 * time.Hour
	return []time.Duration{7 * day, 30 * day, 90 * day, 365 * day}
}

// usage tells what takes space.
func (c *controller) usage(backups *backup.Service) func(ctx context.Context) ([]api.SiteUsage, error) {
	return func(ctx context.Context) ([]api.SiteUsage, error) {
		streams, err := c.site.Usage(ctx, usageAges())
		if err != nil {
			return nil, err
		}
		live := uint64(0)
		for _, s := range streams {
			if s.Name == subjects.BucketStream(subjects.ResourcesBucket) {
				live = s.Bytes
			}
		}
		var out []api.SiteUsage
		for _, s := range streams {
			u := api.SiteUsage{What: s.Name, About: s.Description, Messages: s.Messages, Bytes: s.Bytes, PerDay: s.PerDay, Limit: uint64(s.MaxBytes), First: s.First}
			if s.MaxAge > 0 {
				u.Kept = span(s.MaxAge)
			}
			switch s.Name {
			case subjects.JournalStream:
				u.Limit = c.cfg.JournalMaxBytes
				if c.cfg.JournalKeep > 0 {
					u.Kept = span(c.cfg.JournalKeep)
				}
				// All of it can go but for what there is, which is said once more.
				s.Older = append(s.Older, site.Older{Age: 0, Bytes: s.Bytes - min(live, s.Bytes)})
				if s.DenyPurge {
					s.Older = nil
					u.About += "; made by an earlier version, so that it can't be compacted before a backup of it was restored"
				}
			case subjects.HistoryStream:
			default:
				s.Older = nil
			}
			for _, o := range s.Older {
				if o.Bytes > 0 {
					u.Frees = append(u.Frees, api.Frees{Keep: span(o.Age), Bytes: o.Bytes})
				}
			}
			u.FreesText = freesText(u.Frees)
			out = append(out, u)
		}
		images, n, err := sizeOf(filepath.Join(c.cfg.Data, "images"))
		if err != nil {
			return nil, err
		}
		out = append(out, api.SiteUsage{What: "images", About: fmt.Sprintf("%d files in %s/images", n, c.cfg.Data), Bytes: images})
		index, states, segments, checkpoints := c.past.Usage()
		out = append(out, api.SiteUsage{
			What: "history", About: fmt.Sprintf("index of the journal (%d files) and %d checkpoints in %s/history", segments, checkpoints, c.cfg.Data), Bytes: index + states,
		})
		if list, err := backups.List(); err == nil {
			u := api.SiteUsage{What: "backups", About: fmt.Sprintf("%d backups in %s", len(list), c.target)}
			for _, b := range list {
				u.Bytes += uint64(b.Bytes)
				u.First = b.Created
			}
			if c.cfg.Backup.Keep > 0 {
				u.Kept = fmt.Sprintf("%d", c.cfg.Backup.Keep)
			}
			out = append(out, u)
		}
		slices.SortStableFunc(out, func(a, b api.SiteUsage) int {
			return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.What, b.What))
		})
		return out, nil
	}
}

// span is a duration in days where it is whole days.
func span(d time.Duration) string {
	if d == 0 {
		return "nothing"
	}
	if d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return d.String()
}

func freesText(all []api.Frees) string {
	var parts []string
	for _, f := range all {
		parts = append(parts, fmt.Sprintf("%s with %s kept", api.Size(f.Bytes), f.Keep))
	}
	return strings.Join(parts, ", ")
}

// sizeOf is what the files below a directory take, and how many they are.
func sizeOf(dir string) (bytes uint64, files int, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		bytes += uint64(fi.Size())
		files++
		return nil
	})
	return bytes, files, err
}
