pub struct Filter;
impl Filter {
    pub fn compile(_: &oci_spec::runtime::LinuxSeccomp) -> Result<Self, String> {
        todo!()
    }
    pub fn load(&self) -> Result<(), String> {
        todo!()
    }
}
