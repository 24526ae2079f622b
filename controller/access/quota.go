package access

import (
	"fmt"

	"shoal/controller/resource"
	"shoal/desired"
)

// Use is how much an account has of each quota.
type Use map[resource.Quota]uint64

// Usage counts what an account has. What is in the recycle bin counts, until it is gone for good, but for processors and
// memory of VMs that run nowhere.
func Usage(r resource.Reader, account string) Use {
	u := Use{}
	for vm := range resource.Owned[*resource.VM](r, account) {
		u[resource.QuotaVMs]++
		if vm.Power != desired.PowerOff {
			u[resource.QuotaRunning]++
		}
		if vm.Destroyed.IsZero() {
			u[resource.QuotaCPUs] += uint64(vm.CPUs)
			u[resource.QuotaMemory] += uint64(vm.MemoryMiB) << 20
		}
	}
	for v := range resource.Owned[*resource.Volume](r, account) {
		u[resource.QuotaVolumeBytes] += v.Bytes
		if v.Type == resource.VolumeData {
			u[resource.QuotaVolumes]++
		}
	}
	for i := range resource.Owned[*resource.Image](r, account) {
		u[resource.QuotaImages]++
		u[resource.QuotaImageBytes] += i.Bytes
	}
	for range resource.Owned[*resource.SecGroup](r, account) {
		u[resource.QuotaSecGroups]++
	}
	for range resource.Owned[*resource.L3](r, account) {
		u[resource.QuotaL3]++
	}
	for l := range resource.Owned[*resource.L2](r, account) {
		if l.Type == resource.L2VXLAN {
			u[resource.QuotaVXLAN]++
		}
	}
	return u
}

// CheckQuota refuses what takes an account over a quota, compared with before. What was over it already, since the quota was
// lowered, stands in no way of what does not add to it. The admin account has no quotas.
func CheckQuota(r resource.Reader, account string, before Use) error {
	a, ok := resource.Find[*resource.Account](r, account)
	if !ok || account == resource.AdminAccount {
		return nil
	}
	now := Usage(r, account)
	for _, q := range resource.Quotas() {
		limit := a.Limit(q.Name)
		if now[q.Name] <= limit || now[q.Name] <= before[q.Name] {
			continue
		}
		return &resource.Error{
			Code: resource.CodeQuota, Field: string(q.Name),
			Message: fmt.Sprintf("the quota of account %s is %s; it has %s, and would have %s", a.Name, Amount(q.Name, limit), Amount(q.Name, before[q.Name]), Amount(q.Name, now[q.Name])),
			Remedy:  "remove what is not needed (the recycle bin counts), or ask an administrator for more; see shoalctl quota list",
		}
	}
	return nil
}

// Amount is a number of a quota for people.
func Amount(q resource.Quota, n uint64) string {
	if !q.Bytes() {
		return fmt.Sprint(n)
	}
	for _, u := range []struct {
		name  string
		shift uint
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}} {
		if n >= 1<<u.shift {
			return fmt.Sprintf("%.4g %s", float64(n)/float64(uint64(1)<<u.shift), u.name)
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
