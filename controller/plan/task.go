package plan

import (
	"shoal/controller/resource"
)

// NewTask makes the record of the call that the transaction stands for, about one resource. A call has one task: a
// second NewTask of the same call gives the first one. Decisions of the controller itself have none.
func NewTask(tx resource.Tx, kind resource.Kind, id string) (*resource.Task, error) {
	req := tx.Request()
	if req.ID == "" || req.Caller == resource.CallerController {
		return nil, nil
	}
	if t := TaskOf(tx, req.ID); t != nil {
		return t, nil
	}
	name := req.Op
	if name == "" {
		name = string(kind)
	}
	t := &resource.Task{
		State: resource.TaskRunning, Op: req.Op, RequestID: req.ID, Caller: req.Caller, ResourceKind: kind, ResourceID: id,
	}
	t.ID, t.Name, t.Owner = tx.NewID(), name, req.Owner()
	if err := tx.Put(t); err != nil {
		return nil, err
	}
	return t, nil
}

// TaskOf is the task of a call, or nil.
func TaskOf(r resource.Reader, requestID string) *resource.Task {
	t, _ := r.Holder("task/" + requestID).(*resource.Task)
	return t
}

// Converge tells how far the effect of a call is; see resource.Converge.
func Converge(r resource.Reader, task *resource.Task) Convergence { return resource.Converge(r, task) }
