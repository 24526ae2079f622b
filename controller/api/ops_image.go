package api

import (
	"encoding/hex"
	"net/url"
	"path"
	"strings"

	"shoal/controller/plan"
	"shoal/controller/resource"
)

func images(g *Registry) {
	readable(g, resource.KindImage, "format=qcow2",
		Column{Title: "NAME", Path: "name"}, Column{Title: "STAGE", Path: "stage"}, Column{Title: "STATE", Path: "state"}, Column{Title: "FORMAT", Path: "format"},
		Column{Title: "SIZE", Path: "bytes", As: "size"}, Column{Title: "VIRTUAL", Path: "virtual_bytes", As: "size"}, Column{Title: "VOLUMES", Path: "status.volumes"},
		Column{Title: "SHA256", Path: "sha256", Wide: true}, Column{Title: "URL", Path: "url", Wide: true}, age(), idColumn())
	type imageCreate struct {
		meta
		URL      string `json:"url" required:"true" help:"http://, https://, or file:///path of a file on the controller that everybody may read"`
		Checksum string `json:"checksum,omitempty" help:"what the content must have, sha256:<64 hex digits>"`
	}
	writes(g, Operation{
		Kind: resource.KindImage, Verb: "create", Aliases: []string{"add"}, Task: true, Summary: "Add an image",
		Help: "The controller downloads it, computes its SHA-256 and finds out its format by looking into it: qcow2, ISO 9660 or raw. An addition that fails leaves " +
			"nothing behind; its task says why.",
		Example: "shoalctl image add tiny --url file:///srv/images/tiny.qcow2 --wait\nshoalctl image add debian --url https://example.org/debian.qcow2 --checksum sha256:... --wait",
	}, func(tx resource.Tx, p *imageCreate) (Outcome, error) {
		if err := checkImageURL(p.URL); err != nil {
			return Outcome{}, err
		}
		if strings.HasPrefix(p.URL, "file:") && !tx.Request().Admin {
			e := resource.Invalid("url", "only the admin account may add images from files of the controller")
			e.Code = resource.CodeForbidden
			return Outcome{}, e.WithRemedy("give an http:// or https:// URL")
		}
		if p.Checksum != "" {
			digits, ok := strings.CutPrefix(p.Checksum, "sha256:")
			if b, err := hex.DecodeString(digits); !ok || err != nil || len(b) != 32 {
				return Outcome{}, resource.Invalid("checksum", "%q is not sha256: and 64 hex digits", p.Checksum)
			}
		}
		return create(tx, &resource.Image{Meta: p.base(tx), State: resource.Enabled, URL: p.URL, Checksum: strings.ToLower(p.Checksum), Stage: resource.ImageAdding})
	})
	updatable[*resource.Image](g, "tiny --name tiny-1", "", metaUpdateParts, nil)
	switchable(g, "", func(i *resource.Image) *resource.State { return &i.State }, nil)
	deletable(g, resource.KindImage, "Volumes that stand on it keep what they need of it.")
}

// checkImageURL refuses at once what could never be downloaded, and what would put a password into the journal.
func checkImageURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || len(s) > 4096 {
		return resource.Invalid("url", "is not a URL of at most 4096 bytes")
	}
	if u.User != nil {
		return resource.Invalid("url", "must not hold a user name or password: it is recorded and shown")
	}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" {
			return resource.Invalid("url", "%q names no server", s)
		}
	case "file":
		if u.Host != "" && u.Host != "localhost" || !path.IsAbs(u.Path) || path.Clean(u.Path) != u.Path {
			return resource.Invalid("url", "%q is not file:/// and an absolute, clean path", s)
		}
	default:
		return resource.Invalid("url", "%q starts with none of http://, https://, file:///", s)
	}
	return nil
}

func tasks(g *Registry) {
	readable(g, resource.KindTask, "state=running",
		Column{Title: "ID", Path: "id"}, Column{Title: "OP", Path: "op"}, Column{Title: "STATE", Path: "state"}, Column{Title: "PERCENT", Path: "status.percent"},
		Column{Title: "ABOUT", Path: "names.resource_id"}, Column{Title: "CALLER", Path: "names.caller"}, Column{Title: "ERROR", Path: "error.message", Wide: true},
		Column{Title: "REQUEST", Path: "request_id", Wide: true}, age())
	type taskCancel struct {
		ID string `json:"id" arg:"1" required:"true" ref:"task" help:"id"`
	}
	writes(g, Operation{
		Kind: resource.KindTask, Verb: "cancel", Class: Dangerous, Summary: "Cancel a task",
		Help:    "Only the addition of an image can be cancelled: it leaves nothing behind. What else was accepted is a state that hosts bring about; change it back instead.",
		Example: "shoalctl task cancel TASK",
	}, func(tx resource.Tx, p *taskCancel) (Outcome, error) {
		t, err := resource.Get[*resource.Task](tx, p.ID)
		if err != nil {
			return Outcome{}, err
		}
		if t.State != resource.TaskRunning {
			return Outcome{}, resource.Conflict("id", "the task has ended: it is %s", t.State)
		}
		image, ok := resource.Find[*resource.Image](tx, t.ResourceID)
		if t.ResourceKind != resource.KindImage || !ok || image.Stage != resource.ImageAdding {
			return Outcome{}, resource.Conflict("id", "%s can't be cancelled: it was accepted, and hosts are bringing it about", t.Op).
				WithRemedy("change %s back instead, for instance by stopping, detaching or deleting it", t.ResourceKind)
		}
		c := resource.Copy(t)
		c.State, c.Finished = resource.TaskCancelled, tx.Now()
		c.Error = &resource.Error{Code: resource.CodeConflict, Message: "the addition of the image was cancelled by " + tx.Request().Caller}
		if err := tx.Put(c); err != nil {
			return Outcome{}, err
		}
		deleted, err := plan.Delete(tx, resource.KindImage, image.ID, plan.DeleteOptions{Cascade: true})
		return Outcome{Resources: []resource.Resource{c}, Deleted: deleted}, err
	})
}
