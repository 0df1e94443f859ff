import numpy as np
from dataclasses import dataclass
@dataclass(frozen=True)
class Network:
    up: float; out: float; lat: float=1e-5
def network(system, nic_bits_per_s=None):
    up={"dgx-a100":300e9*.8,"dgx-a100-40gb":300e9*.8,"dgx-h100":450e9*.82,"h100-96gb-500w":450e9*.82,"dgx-h200":450e9*.82}.get(system,900e9*.78)
    nic=nic_bits_per_s or {"dgx-a100":200e9,"dgx-a100-40gb":200e9,"gb300-nvl72":800e9}.get(system,400e9)
    return Network(up,nic/8*.9)
def seconds(kind,*,nbytes,ranks,local,network):
    ranks=np.maximum(ranks,1); local=np.clip(local,1,ranks)
    dom=ranks/local
    f={"all_reduce":2.}.get(kind,1.)
    if kind=="point_to_point":
        return nbytes/np.where(local>1,network.up,network.out)+2e-5
    if kind=="all_to_all":
        return np.where(ranks>1,nbytes*((local-1)/ranks/network.up+(ranks-local)/ranks/network.out)+1e-5,0.)
    t=f*nbytes*((local-1)/local/network.up+(dom-1)/dom/local/network.out)+ network.lat*np.log2(ranks)
    return np.where(ranks>1,t,0.)
