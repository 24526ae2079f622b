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

// EndTask records how a task came out that the controller itself works on; failure is nil where it went well. A task that has
// ended, or is gone, stays as it is.
func EndTask(tx resource.Tx, id string, failure *resource.Error) error {
	t, ok := resource.Find[*resource.Task](tx, id)
	if !ok || t.State != resource.TaskRunning {
		return nil
	}
	t = resource.Copy(t)
	if t.Seq == 0 {
		t.Seq = t.Rev
	}
	t.State, t.Finished, t.Error = resource.TaskDone, tx.Now(), failure
	if failure != nil {
		t.State = resource.TaskFailed
	}
	return tx.Put(t)
}
