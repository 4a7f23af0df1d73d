//! What a launcher of several processes (`mpirun`, `srun`) says of this one, in the environment.

/// A process's place among those that were started together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Launch {
    pub index: usize,
    pub size: usize,
}

/// Variables for a process's number and for how many there are: Open MPI's, those of launchers that speak PMI (MPICH, Intel
/// MPI, Slurm), MVAPICH's, and those of Slurm where it speaks PMIx, which has a variable for the number only.
const VARIABLES: [(&str, &str); 4] = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
];

impl Launch {
    /// What the environment says; `None` without a launcher.
    pub fn find() -> Option<Self> {
        Self::of(|name| std::env::var(name).ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name)?.trim().parse().ok();
        VARIABLES.iter().find_map(|(index, size)| {
            let index = number(index)?;
            // Without a size, a process that isn't the first isn't alone.
            Some(Launch { index, size: number(size).unwrap_or(index + 1) })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_their_variables() {
        let with = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> =
                set.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
            Launch::of(move |name| set.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()))
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("SLURM_NTASKS", "8")]), None);
        let open_mpi = [("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "3"), ("PMIX_RANK", "3")];
        assert_eq!(with(&open_mpi), Some(Launch { index: 3, size: 4 }));
        assert_eq!(with(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]), Some(Launch { index: 0, size: 2 }));
        assert_eq!(with(&[("PMIX_RANK", "1")]), Some(Launch { index: 1, size: 2 }));
        let slurm = [("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", "16")];
        assert_eq!(with(&slurm), Some(Launch { index: 0, size: 16 }));
    }
}
