import numpy as np
from rackscale.catalog import systems
P={"A100-40GB":(312e12,0,0,1.55e12),"A100-80GB":(312e12,0,0,2.0e12),"H100":(989e12,1979e12,0,3.35e12),"H100-96GB-500W":(989e12,1979e12,0,2.4e12),"H200":(989e12,1979e12,0,4.8e12),
"B200":(2250e12,4500e12,9000e12,8e12),"GB200":(2450e12,4900e12,9800e12,8e12),"B300":(2250e12,4500e12,13500e12,8e12),"GB300":(2450e12,4900e12,14700e12,8e12)}
def _peak(chip,precision):
    p=P[chip]; return {"bf16":p[0]*.83,"fp8":p[1]*.75,"fp8_block":p[1]*.70,"nvfp4":p[2]*.5}[precision] or p[0]
def gemm_seconds(*,m,n,k,chip,precision,count=1.0):
    s=(1+ (256 if precision=="bf16" else 700)/k)*(1+150/n)*(1+150/m)
    return count*(2*m*n*k/_peak(chip,precision)*s)
def grouped_gemm_seconds(*,groups,m,n,k,chip,precision):
    return groups*gemm_seconds(m=m,n=n,k=k,chip=chip,precision=precision)
def memory_seconds(*,nbytes,chip): return nbytes/(P[chip][3]*.85)
