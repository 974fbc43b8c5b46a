use oci_spec::runtime::LinuxCapabilities;
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}
impl Sets {
    pub fn of(_: Option<&LinuxCapabilities>) -> Self {
        todo!()
    }
    pub fn drop_bounding(&self) -> Result<(), String> {
        todo!()
    }
    pub fn apply(&self) -> Result<(), String> {
        todo!()
    }
}
